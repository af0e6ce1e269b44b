"""One picture into another without a seam."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import spsolve

from pipelines.portrait import region
from pipelines.portrait.array import Colours, Mask, Picture, resized

_SOLVE_PX = 72


def blurred(mask: Mask, radius: int) -> Mask:
    """Box blur of 2 x radius + 1 pixels."""
    side = 2 * max(0, radius) + 1
    return cv2.blur(mask, (side, side), borderType=cv2.BORDER_REPLICATE).astype(np.float32)


def feathered(mask: Mask, radius: float) -> Mask:
    """Soft inward only: 0 wherever `mask` is 0, 1 from `radius` pixels inside its edge."""
    padded = cv2.copyMakeBorder((mask > 0.5).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    soft = np.clip(depth / max(radius, 1e-6), 0, 1)
    smoothed: Mask = (soft * soft * (3 - 2 * soft)).astype(np.float32)
    return smoothed


def mixed(below: Colours, above: Colours, mask: Mask) -> Colours:
    """above * mask + below * (1 - mask)."""
    return (below + mask[..., None] * (above - below)).astype(np.float32)


def pasted(picture: Picture, part: Colours, mask: Mask, top: int, left: int) -> Picture:
    """A copy of `picture` with `part` in it by its mask; where that is 0, not one bit changes."""
    out = picture.copy()
    window = out[top : top + part.shape[0], left : left + part.shape[1]]
    soft = mixed(window.astype(np.float32), part, mask)
    soft = np.clip(np.round(soft), 0, 255)
    np.copyto(window, soft.astype(np.uint8), where=(mask > 0)[..., None])
    return out


def membrane(
    above: Colours, below: Colours, inside: Mask, trust: Mask, *, interior: float
) -> Colours:
    """What to add to `above` so that it meets `below` at the edge of `inside`.

    Poisson image editing (Perez et al., 2003) written as its correction, which is smooth, so it is
    solved on a small grid: harmonic inside, equal to `below - above` at the edge as far as `trust`
    (0 ... 1, how far both show the same thing there) says, and drawn to it by `interior` within.
    """
    height, width = inside.shape
    times = min(1.0, _SOLVE_PX / max(height, width))
    size = max(2, round(width * times)), max(2, round(height * times))
    weight = inside * np.maximum(trust, 1e-3)
    soft = 1 / times
    difference = smooth((below - above) * weight[..., None], soft)
    known = smooth(weight, soft)[..., None]
    difference = (difference / np.maximum(known, 1e-4)).astype(np.float32)
    difference = resized(difference, size, cv2.INTER_AREA)
    small = resized(inside, size, cv2.INTER_AREA) > 0.5
    sure = resized(trust, size, cv2.INTER_AREA)
    if small.sum() < 4:
        return np.zeros_like(above)
    edge = small & (region.erode(small.astype(np.float32), 1) < 0.5)
    pull = np.where(edge, np.maximum(sure, 1e-3), interior * np.maximum(sure, 0.02))
    solved = _screened_poisson(difference, pull, small)
    return resized(solved, (width, height), cv2.INTER_CUBIC)


def smooth(values: Colours, sigma: float) -> Colours:
    """Gaussian blur; `sigma` in pixels."""
    sigma = max(sigma, 0.6)
    soft = cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return soft.astype(np.float32)


def _screened_poisson(data: Colours, pull: Mask, inside: NDArray[np.bool_]) -> Colours:
    """Minimises sum |grad f|^2 + pull (f - data)^2 over `inside`; outside, its nearest value."""
    index = np.full(inside.shape, -1)
    index[inside] = np.arange(inside.sum())
    pairs = []
    for a, b in ((index[:, :-1], index[:, 1:]), (index[:-1], index[1:])):
        both = (a >= 0) & (b >= 0)
        pairs.append(np.stack([a[both], b[both]]))
    one, other = np.concatenate(pairs, axis=1)
    count = int(inside.sum())
    links = coo_matrix((np.ones(len(one)), (one, other)), shape=(count, count)).tocsr()
    links = links + links.T
    strength = pull[inside].astype(np.float64)
    matrix = (diags(np.asarray(links.sum(1)).ravel() + strength) - links).tocsc()
    found = spsolve(matrix, data[inside].astype(np.float64) * strength[:, None])
    out = np.zeros((*inside.shape, 3), np.float32)
    out[inside] = found
    # spread beyond, so that enlarging does not pull the edge toward 0
    _, nearest = cv2.distanceTransformWithLabels(
        (~inside).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = np.zeros((int(nearest.max()) + 1, 3), np.float32)
    values[nearest[inside]] = out[inside]
    spread: Colours = values[nearest]
    return spread
