"""Write a JobSet for TPU slices on GKE.

python -m launch.gke --name=… --image=… --bucket=… --workdir=/data/run | kubectl apply -f -
"""

from typing import Any

from absl import flags

from flowley_jax.cli import STOPPED_EARLY, run_main
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from launch.check import check_devices, check_mounted, read_config
from launch.job import Job, check_bucket, check_name, define_job_flags, job_from_flags
from launch.output import define_output_flag, to_yaml, write_output
from launch.slices import Slice, find_slice

# Seconds between SIGTERM and SIGKILL: enough for a step and a checkpoint.
_GRACE = 180


def main() -> int:
    """Run the command line: print the manifest, or write it to --out."""
    values = flags.FLAGS
    job, slice_ = job_from_flags(), find_slice(values.accelerator)
    config = read_config(job)
    check_devices(
        config,
        values.slices * slice_.chips,
        machines=values.slices * slice_.hosts,
        slices=values.slices,
    )
    check_mounted(job, config, values.mount)
    manifest = jobset(
        job,
        name=check_name(values.name),
        slice_=slice_,
        slices=values.slices,
        image=values.image,
        bucket=check_bucket(values.bucket, "gs"),
        mount=values.mount,
        service_account=values.service_account,
        spot=values.spot,
    )
    write_output(to_yaml(manifest))
    return 0


def jobset(
    job: Job,
    *,
    name: str,
    slice_: Slice,
    slices: int,
    image: str,
    bucket: str,
    mount: str,
    service_account: str,
    spot: bool,
    failures: int = 3,
) -> dict[str, Any]:
    """Return a manifest with one Kubernetes job per slice and one pod per machine.

    A pod that is preempted, or exits with code 75, restarts all pods. Such restarts are not limited: they
    do not count towards `failures`.

    Args:
      job: the training.
      name: name of the JobSet.
      slice_: the TPU slice.
      slices: number of slices.
      image: container image with this project installed.
      bucket: gs://… to mount.
      mount: folder at which pods see the bucket.
      service_account: Kubernetes account that may read and write the bucket.
      spot: whether to use spot nodes.
      failures: restarts after other failures before the JobSet fails.
    """
    pod = {
        "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
        "spec": _pod(job, slice_, image, bucket, mount, service_account, spot),
    }
    kubernetes_job = {
        "parallelism": slice_.hosts,
        "completions": slice_.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "train", "operator": "In", "values": [STOPPED_EARLY]},
                },
            ]
        },
        "template": pod,
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": failures,
                "rules": [
                    {
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": "slice", "replicas": slices, "template": {"spec": kubernetes_job}}],
        },
    }


def _pod(
    job: Job, slice_: Slice, image: str, bucket: str, mount: str, service_account: str, spot: bool
) -> dict[str, Any]:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": slice_.generation.gke,
        "cloud.google.com/gke-tpu-topology": slice_.topology,
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE,
        "serviceAccountName": service_account,
        "nodeSelector": selector | ({"cloud.google.com/gke-spot": "true"} if spot else {}),
        "containers": [
            {
                "name": "train",
                "image": image,
                # With exec, the training is process 1 of its pod: only that process gets SIGTERM.
                "command": ["bash", "-c", _literal(f"exec {job.command()}")],
                "resources": {"limits": {"google.com/tpu": slice_.chips // slice_.hosts}},
                "volumeMounts": [{"name": "bucket", "mountPath": mount}],
            }
        ],
        "volumes": [
            {
                "name": "bucket",
                "csi": {
                    "driver": "gcsfuse.csi.storage.gke.io",
                    "volumeAttributes": {
                        "bucketName": bucket.removeprefix("gs://").rstrip("/"),
                        "mountOptions": "implicit-dirs",
                    },
                },
            }
        ],
    }


def _literal(text: str) -> str:
    """Return a text in which Kubernetes replaces no variables."""
    return text.replace("$(", "$$(")


def _define_flags() -> None:
    define_job_flags()
    flags.DEFINE_string("image", None, "Container image with this project installed.", required=True)
    flags.DEFINE_string("accelerator", "v5litepod-16", "Generation and size of a slice.")
    define_int("slices", 1, "Number of slices.", Range(least=1, most=1000))
    flags.DEFINE_string("bucket", None, "gs://… with the records and the run.", required=True)
    flags.DEFINE_string("mount", "/data", "Folder at which pods see the bucket.")
    flags.DEFINE_string(
        "service_account", "default", "Kubernetes account that may read and write the bucket."
    )
    flags.DEFINE_bool("spot", False, "Use spot nodes: cheaper, but they can be preempted at any time.")
    define_output_flag()


if __name__ == "__main__":
    _define_flags()
    run_main(main)
