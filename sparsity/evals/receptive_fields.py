"""Receptive fields: how much of each a Gabor function explains, how much a centre with a surround.

Bricken et al. 2023 (Fig. 7, App. C) show fields and leave their score to others. Here each encoder row, read as an
image, is fitted by both functions; the same fit on fields whose pixels are shuffled, or whose phases are, says what
of it is chance and what any smooth field would show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sparsity import spmd
from sparsity.config import ConfigError
from sparsity.evals.result import Measure, Result, Subject

_WIDTH = 0.75  # least standard deviation of a Gaussian, pixels: narrower, every single pixel would be a field
_CYCLES = 0.25  # least frequency x width of a Gabor: with less it is a blob, which is the other function's
_STARTS = 3  # of each field, at different scales
_STEPS = 40
_SHOWN = 625  # fields of a picture, as in the paper's
_PIXELS = 1_000_000  # pixels fitted at a time: bounds the memory

ORIENTATION_EDGES = np.linspace(0, 180, 13)  # degrees
FREQUENCY_EDGES = np.linspace(0, 0.5, 11)  # cycles per pixel


@dataclasses.dataclass(frozen=True)
class Gabors:
    """The best Gabor function of each of n fields.

    field[y, x, c] = offset[c] + amplitude[c] exp(-u^2 / 2 width^2 - v^2 / 2 length^2) cos(2 pi frequency u + phase),
    u and v the distances from (x, y) across and along the stripes. Each [n] but amplitude; NaN for flat fields.

    Attributes:
      explained: share of the field's variance (about each channel's mean), in [0, 1]; 0 for flat fields.
      x, y: the centre, pixels; 0 is the middle of the first column and row.
      orientation: of u, degrees from x towards y (down the rows), in [0, 180); the stripes are at right angles to it.
      frequency: cycles per pixel, at most 1/2.
      width, length: standard deviations of the envelope along u and v, pixels, at least 3/4.
      phase: degrees, in [0, 180); 0 is even about the centre, 90 odd.
      amplitude: [n, c], in the field's units.
    """

    explained: np.ndarray
    x: np.ndarray
    y: np.ndarray
    orientation: np.ndarray
    frequency: np.ndarray
    width: np.ndarray
    length: np.ndarray
    phase: np.ndarray
    amplitude: np.ndarray


@dataclasses.dataclass(frozen=True)
class CentreSurrounds:
    """The best difference of Gaussians of each of n fields.

    field[y, x, c] = offset[c] + amplitude[c] (exp(-r^2 / 2 centre^2) - weight (centre / surround)^2 exp(-r^2 / 2
    surround^2)), r the distance from (x, y). Each [n] but amplitude; NaN for flat fields.

    Attributes:
      explained: share of the field's variance (about each channel's mean), in [0, 1]; 0 for flat fields.
      x, y: the centre, pixels; 0 is the middle of the first column and row.
      centre, surround: standard deviations, pixels; centre at least 3/4, surround 1.2 to 6 times that.
      weight: what the surround takes of what the centre adds, in [0, 2]; 0 is a blob, 1 is balanced.
      amplitude: [n, c], in the field's units.
    """

    explained: np.ndarray
    x: np.ndarray
    y: np.ndarray
    centre: np.ndarray
    surround: np.ndarray
    weight: np.ndarray
    amplitude: np.ndarray


@dataclasses.dataclass(frozen=True)
class FieldFits:
    """Both fits of n fields.

    Attributes:
      flat: [n] bool: the field is constant in every channel, so there is nothing to explain.
    """

    gabor: Gabors
    centre_surround: CentreSurrounds
    flat: np.ndarray

    def __len__(self) -> int:
        return len(self.flat)


def fit_fields(fields: np.ndarray) -> FieldFits:
    """The least-squares Gabor function and difference of Gaussians of every field [n, h, w, c].

    All channels share one spatial function; each has its own amplitude and offset. Starting points are the best of a
    dictionary at each of its scales, the three best of these; then Levenberg-Marquardt steps, amplitude and offset
    eliminated (Kaufman 1975). A function of the fields alone, each field by itself.

    Raises:
      ValueError: fields that are not [n, h, w, c] with n at least 1, h and w at least 4, or not finite.
    """
    fields = np.asarray(fields, np.float64)
    if fields.ndim != 4 or min(fields.shape[1:3]) < 4 or not fields.size:
        raise ValueError(f"fields: expected [n, h, w, c] with n >= 1, h and w >= 4, got {list(fields.shape)}")
    broken = ~np.isfinite(fields).all((1, 2, 3))
    if broken.any():
        raise ValueError(f"fields: {broken.sum()} of {len(fields)} hold a NaN or infinity")
    w_NxCxP = np.moveaxis(fields, -1, 1).reshape(len(fields), fields.shape[3], -1)
    largest = np.abs(w_NxCxP).max((1, 2))
    scaled = w_NxCxP / np.where(largest > 0, largest, 1)[:, None, None]  # squares neither over- nor underflow
    scaled = scaled - scaled.mean(2, keepdims=True)
    norm = np.sqrt((scaled**2).sum((1, 2)))
    flat = norm < 1e-6 * np.prod(scaled.shape[1:]) ** 0.5  # what rounding leaves of a constant in float32
    unit = np.where(flat[:, None, None], 0, scaled / np.where(flat, 1, norm)[:, None, None])
    size = fields.shape[1:3]
    gabor = _gabors(*_fit(_GABOR, unit, size), largest * norm, flat)
    return FieldFits(gabor, _centre_surrounds(*_fit(_CENTRE_SURROUND, unit, size), largest * norm, flat), flat)


def shuffled(fields: np.ndarray, seed: int) -> np.ndarray:
    """`fields` [n, h, w, c] with the pixels of each in random order, their channels together: a null hypothesis.

    The values stay and every arrangement in space goes, smoothness too. So to exceed this null is to have a spatial
    structure, whichever: of white noise smoothed over two pixels 86% of fields are Gabor-like by this null, and more
    than half of their variance is a Gabor function's. The stricter null is `rephased`.
    """
    n, h, w, c = fields.shape
    order = np.random.default_rng(seed).random((n, h * w)).argsort(1)
    return np.take_along_axis(fields.reshape(n, h * w, c), order[..., None], 1).reshape(fields.shape)


def rephased(fields: np.ndarray, seed: int) -> np.ndarray:
    """`fields` [n, h, w, c] with random Fourier phases, the same for all channels: the null of equal smoothness.

    Each field keeps its power spectrum (with edges joined) and the relations between its channels; what goes is that
    its frequencies meet in one place. To exceed this null is to be more of a Gabor function, or a centre with a
    surround, than texture of the same frequencies and orientations is.
    """
    noise = np.random.default_rng(seed).normal(size=fields.shape[:3])
    turned = np.exp(1j * np.angle(np.fft.fft2(noise)))[..., None]  # of a real field, so that the result is real
    return np.fft.ifft2(np.fft.fft2(fields, axes=(1, 2)) * turned, axes=(1, 2)).real


def score_fields(fits: FieldFits, null: FieldFits, level: float = 0.05, explained: float = 0.5) -> Result:
    """How many fields are Gabor-like, how many centre-surround, and their orientations and frequencies.

    A field is Gabor-like if the share explained by its Gabor function exceeds the threshold and is at least that of
    its difference of Gaussians; centre-surround if the latter exceeds its threshold and is more. There are two
    thresholds: the 1 - `level` quantile of the fits of the `null` (`shuffled` or `rephased` fields; a share of about
    `level` of fields that are such noise exceeds it), and the stricter one of these and `explained`.

    Raises:
      ValueError: a level or a share outside (0, 1).
    """
    for name, value in (("level", level), ("explained", explained)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: must be in (0, 1), got {value}")
    shares = {"gabor": fits.gabor.explained, "centre_surround": fits.centre_surround.explained}
    of_null = {"gabor": null.gabor.explained, "centre_surround": null.centre_surround.explained}
    winner = np.where(shares["gabor"] >= shares["centre_surround"], "gabor", "centre_surround")
    bounds = {name: float(np.quantile(values, 1 - level)) for name, values in of_null.items()}
    n = len(fits)
    measures, chosen = [], {}
    for name, share in shares.items():
        what = {"gabor": "a Gabor function", "centre_surround": "a difference of Gaussians"}[name]
        text = f"share of a field's variance that {what} explains"
        error = None if n < 2 else float(share.std(ddof=1) / n**0.5)
        measures.append(
            Measure(f"{name}.explained", float(share.mean()), error, n, f"mean over n fields of the {text}")
        )
        text = f"{1 - level:g} quantile of the {text}, over {len(null)} fields of the null"
        measures.append(Measure(f"{name}.threshold", bounds[name], None, len(null), text))
        for suffix, bound in (("above_null", bounds[name]), ("above", max(bounds[name], explained))):
            fit = (share > bound) & (winner == name)
            text = f"share of n fields of which {what} explains more than {bound:.3g} and the most of the two"
            p = float(fit.mean())
            measures.append(Measure(f"{name}.{suffix}", p, (p * (1 - p) / n) ** 0.5, n, f"{text}; binomial error"))
            chosen[name] = fit  # the stricter one stays
    gabor = chosen["gabor"]
    arrays = {
        "gabor_orientations": np.histogram(fits.gabor.orientation[gabor], ORIENTATION_EDGES)[0].tolist(),
        "gabor_frequencies": np.histogram(fits.gabor.frequency[gabor], FREQUENCY_EDGES)[0].tolist(),
        "gabor_explained": shares["gabor"].tolist(),
        "centre_surround_explained": shares["centre_surround"].tolist(),
        "gabor_explained_null": of_null["gabor"].tolist(),
        "centre_surround_explained_null": of_null["centre_surround"].tolist(),
    }
    return Result(tuple(measures), arrays)


@dataclasses.dataclass(frozen=True)
class _Family:
    """Spatial functions of some parameters.

    Attributes:
      profile: (parameters [m, p], x [P], y [P]) -> values [m, P] and a function that gives their derivatives [m, p, P].
      grid: (h, w) -> the dictionary's parameters, [t, p] for each scale.
      clip: (parameters [m, p], h, w) -> the nearest allowed ones.
    """

    profile: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, Callable[[], np.ndarray]]]
    grid: Callable[[int, int], list[np.ndarray]]
    clip: Callable[[np.ndarray, int, int], np.ndarray]


def _gabor_profile(params, x, y):
    """Parameters: x0, y0, angle, log width, log length, log cycles (frequency x width), phase; radians."""
    x0, y0, angle, log_width, log_length, log_cycles, phase = (p[:, None] for p in params.T)
    width, length = np.exp(log_width), np.exp(log_length)
    k = 2 * np.pi * np.exp(log_cycles) / width
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = (x - x0) * cos + (y - y0) * sin, (y - y0) * cos - (x - x0) * sin
    envelope = np.exp(-0.5 * ((u / width) ** 2 + (v / length) ** 2))
    g = envelope * np.cos(k * u + phase)

    def derivatives():
        quadrature = envelope * np.sin(k * u + phase)
        du = -g * u / width**2 - k * quadrature
        dv = -g * v / length**2
        d_width = g * (u / width) ** 2 + k * u * quadrature  # the frequency is cycles / width
        d_length = g * (v / length) ** 2
        of_place = [-du * cos + dv * sin, -du * sin - dv * cos, du * v - dv * u]
        return np.stack([*of_place, d_width, d_length, -k * u * quadrature, -quadrature], 1)

    return g, derivatives


def _gabor_grid(h, w):
    scales = []
    for width in _scales(h, w):
        cycles = [c for c in (0.3, 0.5, 0.8, 1.2) if c <= width / 2]
        angles, phases = np.pi * np.arange(8) / 8, np.pi * np.arange(4) / 4
        lengths = [np.log(width), np.log(2 * width)]
        scales.append(_product(*_centres(h, w, width), angles, [np.log(width)], lengths, np.log(cycles), phases))
    return scales


def _gabor_clip(params, h, w):
    x0, y0, angle, log_width, log_length, log_cycles, phase = params.T
    log_width = np.clip(log_width, np.log(_WIDTH), np.log(max(h, w) / 2))
    log_length = np.clip(log_length, np.log(_WIDTH), np.log(max(h, w)))
    log_cycles = np.clip(log_cycles, np.log(_CYCLES), log_width - np.log(2))  # up to 1/2 cycle per pixel
    return np.stack([*_inside(x0, y0, h, w), angle, log_width, log_length, log_cycles, phase], 1)


def _centre_surround_profile(params, x, y):
    """Parameters: x0, y0, log centre, log (surround / centre), weight."""
    x0, y0, log_centre, log_ratio, weight = (p[:, None] for p in params.T)
    centre, ratio = np.exp(log_centre), np.exp(log_ratio)
    dx, dy = x - x0, y - y0
    r2 = (dx**2 + dy**2) / centre**2
    inner, outer = np.exp(-0.5 * r2), np.exp(-0.5 * r2 / ratio**2) / ratio**2

    def derivatives():
        slope = (inner - weight * outer / ratio**2) / centre**2  # of g: -slope dx
        d_ratio = -weight * outer * (r2 / ratio**2 - 2)
        return np.stack([slope * dx, slope * dy, slope * r2 * centre**2, d_ratio, -outer], 1)

    return inner - weight * outer, derivatives


def _centre_surround_grid(h, w):
    ratios = np.log([1.6, 3.0])
    return [_product(*_centres(h, w, s), [np.log(s)], ratios, [0.2, 1.0]) for s in (_WIDTH, *_scales(h, w))]


def _centre_surround_clip(params, h, w):
    x0, y0, log_centre, log_ratio, weight = params.T
    log_centre = np.clip(log_centre, np.log(_WIDTH), np.log(max(h, w) / 2))
    log_ratio, weight = np.clip(log_ratio, np.log(1.2), np.log(6)), np.clip(weight, 0, 2)
    return np.stack([*_inside(x0, y0, h, w), log_centre, log_ratio, weight], 1)


_GABOR = _Family(_gabor_profile, _gabor_grid, _gabor_clip)
_CENTRE_SURROUND = _Family(_centre_surround_profile, _centre_surround_grid, _centre_surround_clip)


def _scales(h: int, w: int) -> np.ndarray:
    """Widths of the dictionary, pixels: 1, 1.6, 2.56, ... up to 0.4 of the larger side."""
    return 1.6 ** np.arange(1 + int(np.log(0.4 * max(h, w)) / np.log(1.6)))


def _centres(h: int, w: int, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows over the field, about 1.2 widths apart: none is further than 0.6 of them from the next."""
    return tuple((np.arange(n := -(-side // (1.2 * width))) + 0.5) * side / n - 0.5 for side in (w, h))


def _product(*axes: np.ndarray) -> np.ndarray:
    """[t, p]: all combinations."""
    return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], 1)


def _inside(x0, y0, h, w):
    return np.clip(x0, -0.5, w - 0.5), np.clip(y0, -0.5, h - 0.5)


def _fit(family: _Family, unit: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters [n, p], amplitudes [n, c] and share explained [n] of fields [n, c, P] of mean 0 and norm 1 (or 0)."""
    h, w = size
    y, x = (a.ravel().astype(np.float64) for a in np.mgrid[:h, :w])
    starts_NxSxP = _starts(family, unit, size, x, y)
    n, s, p = starts_NxSxP.shape
    params, amplitude, explained = np.empty((n, p)), np.empty(unit.shape[:2]), np.empty(n)
    block = max(_PIXELS // (s * h * w), 1)
    for i in range(0, n, block):
        part = slice(i, i + block)
        repeated = np.repeat(unit[part], s, 0)
        found = _refine(family, repeated, starts_NxSxP[part].reshape(-1, p), size, x, y)
        best = found[2].reshape(-1, s).argmax(1) + s * np.arange(len(unit[part]))
        params[part], amplitude[part], explained[part] = (f[best] for f in found)
    return params, amplitude, explained


def _starts(family, unit, size, x, y) -> np.ndarray:
    """[n, starts, p]: the dictionary's best at each scale, and of these the best."""
    n, c, pixels = unit.shape
    fields = unit.reshape(n * c, pixels).astype(np.float32)
    x32, y32 = x.astype(np.float32), y.astype(np.float32)
    scores, params = [], []
    for grid in family.grid(*size):
        score, best = np.full(n, -1, np.float32), np.zeros(n, int)
        chunk = max(4 * _PIXELS // max(n * c, pixels), 1)
        for i in range(0, len(grid), chunk):
            g = _centred(family.profile(grid[i : i + chunk].astype(np.float32), x32, y32)[0])
            g /= np.maximum(np.sqrt((g**2).sum(1, keepdims=True)), 1e-6)
            found = ((fields @ g.T).reshape(n, c, -1) ** 2).sum(1)
            index = found.argmax(1)
            value = found[np.arange(n), index]
            best, score = np.where(value > score, i + index, best), np.maximum(score, value)
        scores.append(score)
        params.append(grid[best])
    order = np.argsort(-np.stack(scores, 1), axis=1, kind="stable")[:, :_STARTS]
    return np.take_along_axis(np.stack(params, 1), order[..., None], 1)


def _centred(a: np.ndarray) -> np.ndarray:
    return a - a.mean(-1, keepdims=True)


def _evaluate(family, unit, params, x, y):
    """(amplitude [m, c], share explained [m], J^T J [m, p, p], J^T residual [m, p]), amplitude eliminated."""
    g, derivatives = family.profile(params, x, y)
    g, jacobian = _centred(g), _centred(derivatives())  # the offset eliminated
    square = np.maximum((g**2).sum(1), 1e-12)
    along = np.matmul(unit, g[..., None])[..., 0]
    amplitude = along / square[:, None]
    jacobian -= (np.matmul(jacobian, g[..., None]) / square[:, None, None]) * g[:, None]
    target = np.matmul(amplitude[:, None], unit)[:, 0]
    normal = np.matmul(jacobian, jacobian.swapaxes(1, 2)) * (amplitude**2).sum(1)[:, None, None]
    return amplitude, (along**2).sum(1) / square, normal, np.matmul(jacobian, target[..., None])[..., 0]


def _refine(family, unit, params, size, x, y):
    """Levenberg-Marquardt steps from `params` [m, p], each field on its own until a step gains less than 1e-7."""
    params = family.clip(params, *size)
    amplitude, explained, normal, gradient = _evaluate(family, unit, params, x, y)
    damping, active = np.full(len(params), 1e-2), np.arange(len(params))
    diagonal = np.arange(params.shape[1])
    for _ in range(_STEPS):
        a = normal[active].copy()
        scale = a[:, diagonal, diagonal]
        a[:, diagonal, diagonal] += damping[active, None] * scale + 1e-9 * scale.max(1, keepdims=True) + 1e-30
        step = np.linalg.solve(a, gradient[active][..., None])[..., 0]
        trial = family.clip(params[active] + step, *size)
        found = _evaluate(family, unit[active], trial, x, y)
        gain = found[1] - explained[active]
        better = gain > 0
        to = active[better]
        params[to] = trial[better]
        for old, new in zip((amplitude, explained, normal, gradient), found, strict=True):
            old[to] = new[better]
        damping[active] = np.clip(damping[active] * np.where(better, 0.3, 5.0), 1e-7, 1e8)
        active = active[np.where(better, gain > 1e-7, damping[active] < 1e4)]
        if not len(active):
            break
    return params, amplitude, explained


def _gabors(params, amplitude, explained, scale, flat) -> Gabors:
    x0, y0, angle, log_width, log_length, log_cycles, phase = np.where(flat, np.nan, params.T)
    phase = np.where(np.floor(angle / np.pi) % 2 == 1, -phase, phase)  # u turned round
    sign = np.where(np.floor(phase / np.pi) % 2 == 1, -1, 1)
    return Gabors(
        explained=np.where(flat, 0, np.clip(explained, 0, 1)),
        x=x0,
        y=y0,
        orientation=np.degrees(angle % np.pi) % 180,
        frequency=np.exp(log_cycles - log_width),
        width=np.exp(log_width),
        length=np.exp(log_length),
        phase=np.degrees(phase % np.pi) % 180,
        amplitude=np.where(flat[:, None], np.nan, (sign * scale)[:, None] * amplitude),
    )


def _centre_surrounds(params, amplitude, explained, scale, flat) -> CentreSurrounds:
    x0, y0, log_centre, log_ratio, weight = np.where(flat, np.nan, params.T)
    return CentreSurrounds(
        explained=np.where(flat, 0, np.clip(explained, 0, 1)),
        x=x0,
        y=y0,
        centre=np.exp(log_centre),
        surround=np.exp(log_centre + log_ratio),
        weight=weight,
        amplitude=np.where(flat[:, None], np.nan, scale[:, None] * amplitude),
    )


def receptive_fields(subject: Subject) -> Result:
    """Scores of the first layer's weights read as images, against both nulls, and the fields that one image activates.

    The most active fields (625 at most) on one image of the split under training's noise are handed out for the
    picture (Bricken et al. 2023, Figs. 7 and 11), with the activations and that image.

    Raises:
      ConfigError: the model's first layer does not read a whole image.
    """
    if not hasattr(subject.model, "encoder"):
        raise ConfigError(f"evals.names: {type(subject.model).__name__} has no units with a receptive field")
    shape = subject.source.inputs["image"].shape
    kernel, bias = (x.astype(np.float64) for x in spmd.fetch(subject.model.encoder(subject.params)))
    fields = kernel.T.reshape(-1, *shape)
    fits = fit_fields(fields)
    results = {
        "phases": score_fields(fits, fit_fields(rephased(fields, subject.seed))),
        "pixels": score_fields(fits, fit_fields(shuffled(fields, subject.seed))),
    }
    measures = [
        dataclasses.replace(m, name=f"fields.{null}.{m.name}", definition=f"{m.definition}; null: random {null}")
        for null, result in results.items()
        for m in result.measures
    ]
    noise = subject.noise
    query = subject.clean.images[0].astype(np.float64)
    if noise is not None:
        query = np.asarray(noise(jnp.asarray(query, jnp.float32), jax.random.key(subject.seed), 0), np.float64)
    activity = query.reshape(-1) @ kernel + bias
    chosen = np.argsort(-activity, kind="stable")[:_SHOWN]
    shown = {"fields": fields[chosen], "activity": activity[chosen], "query": query}
    arrays = {f"fields.{key}": np.round(value, 5).tolist() for key, value in shown.items()}
    return Result(tuple(measures), results["phases"].arrays | arrays)
