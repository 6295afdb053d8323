// Show the playing position on the spectrograms, let only one video play at a time, and seek on a click.
for (const clip of document.querySelectorAll(".clip")) {
  const timeline = clip.querySelector(".timeline");
  const playhead = clip.querySelector(".playhead");
  const seconds = Number(timeline.dataset.seconds);
  const videos = clip.querySelectorAll("video");

  for (const video of videos) {
    const follow = () => {
      playhead.hidden = false;
      playhead.style.left = `${100 * Math.min(1, video.currentTime / seconds)}%`;
      if (!video.paused && !video.ended) requestAnimationFrame(follow);
    };
    video.addEventListener("play", () => {
      for (const other of document.querySelectorAll("video")) if (other !== video) other.pause();
      follow();
    });
    video.addEventListener("seeked", follow);
  }

  timeline.addEventListener("click", (event) => {
    const box = timeline.getBoundingClientRect();
    const playing = [...videos].find((video) => !video.paused) ?? videos[0];
    playing.currentTime = ((event.clientX - box.left) / box.width) * seconds;
  });
}
