"""The meter of true peaks that ITU-R BS.1770-4 gives in annex 2, with its table of coefficients."""

import numpy as np

_FIRST = (
    *(0.0017089843750, 0.0109863281250, -0.0196533203125, 0.0332031250000, -0.0594482421875, 0.1373291015625),
    *(
        0.9721679687500,
        -0.1022949218750,
        0.0476074218750,
        -0.0266113281250,
        0.0148925781250,
        -0.0083007812500,
    ),
)
_SECOND = (
    *(
        -0.0291748046875,
        0.0292968750000,
        -0.0517578125000,
        0.0891113281250,
        -0.1665039062500,
        0.4650878906250,
    ),
    *(
        0.7797851562500,
        -0.2003173828125,
        0.1015625000000,
        -0.0582275390625,
        0.0330810546875,
        -0.0189208984375,
    ),
)
# The other two phases mirror these.
PHASES = (_FIRST, _SECOND, _SECOND[::-1], _FIRST[::-1])


def standard_true_peak(wave: np.ndarray) -> float:
    """Return the true peak in dB of a wave (N,) or (N, C) of 48 kHz or less."""
    channels = np.atleast_2d(np.asarray(wave, np.float64).T)
    points = [np.convolve(channel, phase) for channel in channels for phase in PHASES]
    return 20 * np.log10(max(np.abs(values).max() for values in points))
