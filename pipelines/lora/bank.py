"""The slot bank: which adapters are on the device, and which of them each row of a batch wears.

A batch's factors are gathered once and kept while its composition lasts, for compositions change
far more rarely than steps are taken; so a step costs one small product more per layer, the same for
any number of different adapters.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from pipelines.components import Components
from pipelines.lane import ByLane
from pipelines.lora.adapter import Adapter
from pipelines.lora.factors import Factors
from pipelines.lora.keys import lora_layers
from pipelines.lora.layers import Group, bank, in_compiled_block, set_groups

RowLoras = tuple[tuple[str, float], ...]
"""The adapters of one row: (id, weight) each."""
Part = Literal["unet", "text_encoder"]
Groups = dict[str, tuple[Group, ...]]
"""Of each layer, by path."""
Plan = Mapping[str, Iterable[Group]]
"""The same, as a layer asks for it in whatever lane."""
KEPT_PLANS = 2
"""Compositions kept gathered: batches of several sizes take turns."""


@dataclass
class _Slot:
    factors: dict[str, Factors]
    """On the device."""
    holds: int = 0


class _Row(NamedTuple):
    number: int
    down: torch.Tensor
    up: torch.Tensor
    weight: float
    gain: torch.Tensor | None = None


class LoraBank:
    """Up to `slots` adapters on the device. Belongs to the thread that runs the model.

    The layers that an adapter changes are exchanged when the first adapter to change them comes;
    until then the model is as it was.
    """

    def __init__(self, components: Components, *, slots: int = 8) -> None:
        self._components = components
        self._capacity = slots
        self._layers = lora_layers(components)
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        """By id of the adapter, the least recently used first."""
        self._plans: OrderedDict[tuple[Part, tuple[tuple[RowLoras, ...], ...]], Plan] = (
            OrderedDict()
        )

    @property
    def resident(self) -> tuple[str, ...]:
        """Ids of the adapters on the device, the least recently used first."""
        return tuple(self._slots)

    def acquire(self, adapter: Adapter) -> bool:
        """Brings an adapter onto the device, if it is not there, and holds it until `release`.

        Where all slots are full the least recently used adapter that nobody holds makes room; False
        where running requests hold them all.
        """
        if adapter.id not in self._slots:
            if not self._make_room():
                return False
            factors = adapter.to(self._components.device)
            for path in factors:
                bank(self._layers[path])
            self._slots[adapter.id] = _Slot(factors)
        self._slots[adapter.id].holds += 1
        self._slots.move_to_end(adapter.id)
        return True

    def release(self, adapter_id: str) -> None:
        """Gives one hold back; the adapter stays until its slot is needed."""
        slot = self._slots[adapter_id]
        if slot.holds == 0:
            raise ValueError(f"adapter {adapter_id} is not held")
        slot.holds -= 1

    def _make_room(self) -> bool:
        if len(self._slots) < self._capacity:
            return True
        unheld = next((key for key, slot in self._slots.items() if not slot.holds), None)
        if unheld is None:
            return False
        del self._slots[unheld]
        self._plans.clear()  # those of the evicted hold device memory
        return True

    # --- one forward -----------------------------------------------------------------------

    @contextmanager
    def rows(
        self, part: Part, rows: Sequence[RowLoras], lanes: Sequence[slice] = (slice(None),)
    ) -> Iterator[None]:
        """Within it, each row of a forward of the UNet, or of all text encoders, wears its own.

        The adapters must be held. A row that wears several adds all of them up. `lanes` are those
        that the forward's rows are dealt to.
        """
        dealt = tuple(tuple(rows[lane]) for lane in lanes)
        plan = self._plan(part, dealt) if any(rows) else {}
        for path, groups in plan.items():
            set_groups(self._layers[path], groups)
        try:
            yield
        finally:
            for path in plan:
                set_groups(self._layers[path], ())

    def _plan(self, part: Part, dealt: tuple[tuple[RowLoras, ...], ...]) -> Plan:
        key = (part, dealt)
        if key not in self._plans:
            self._plans[key] = _by_lane([self._gather(part, rows) for rows in dealt])
            if len(self._plans) > KEPT_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _gather(self, part: Part, rows: tuple[RowLoras, ...]) -> Groups:
        layers: dict[str, dict[int, list[_Row]]] = defaultdict(lambda: defaultdict(list))
        for number, loras in enumerate(rows):
            for path, worn in self._worn(part, loras).items():
                row = _row(number, worn)
                layers[path][_bucket(len(row.down))].append(row)
        plan = {
            path: tuple(self._group(members) for members in buckets.values())
            for path, buckets in layers.items()
        }
        if part == "unet" and self._components.compiled:
            plan |= self._static(plan, len(rows))
        return plan

    def _static(self, plan: Groups, rows: int) -> Groups:
        """Groups of compiled layers, of shapes that no change of adapters changes.

        Each has one, of all rows and a rank that is a bucket's: zeros where nothing is worn.
        """
        compiled = {path for path in self._layers if in_compiled_block(path)}
        ranks = [group.down.shape[1] for path in plan for group in plan[path] if path in compiled]
        rank = _bucket(max(ranks, default=1))
        return {path: (self._whole(path, plan.get(path, ()), rows, rank),) for path in compiled}

    def _whole(self, path: str, groups: tuple[Group, ...], rows: int, rank: int) -> Group:
        layer: Any = self._layers[path]
        like = layer.weight
        down = like.new_zeros(rows, rank, layer.in_features)
        up = like.new_zeros(rows, rank, layer.out_features)
        gain = None
        for group in groups:
            own = group.down.shape[1]
            down[group.rows, :own], up[group.rows, :own] = group.down, group.up
            if group.gain is not None:
                gain = like.new_zeros(rows, 1, layer.out_features) if gain is None else gain
                gain[group.rows] = group.gain
        return Group(slice(0, rows), down, up, gain)

    def _worn(self, part: Part, loras: RowLoras) -> dict[str, list[tuple[Factors, float]]]:
        """The factors and weights of one row, by path of the layer."""
        worn: dict[str, list[tuple[Factors, float]]] = defaultdict(list)
        for adapter_id, weight in loras:
            for path, factors in self._slots[adapter_id].factors.items():
                if path.startswith(part) and weight:
                    worn[path].append((factors, weight))
        return worn

    @staticmethod
    def _group(members: list[_Row]) -> Group:
        down, up = _stack([row.down for row in members]), _stack([row.up for row in members])
        weights = [row.weight for row in members]
        if set(weights) != {1.0}:
            up = up * torch.tensor(weights, dtype=up.dtype, device=up.device).view(-1, 1, 1)
        numbers = [row.number for row in members]
        first, last = numbers[0], numbers[-1]
        rows: slice | torch.Tensor = slice(first, last + 1)
        if last - first != len(numbers) - 1:
            rows = torch.tensor(numbers, device=down.device)
        return Group(rows, down, up, _gains(members))


def _by_lane(plans: Sequence[Groups]) -> Plan:
    if len(plans) == 1:
        return plans[0]
    paths = {path for plan in plans for path in plan}
    return {path: ByLane([plan.get(path, ()) for plan in plans]) for path in paths}


def _row(number: int, worn: list[tuple[Factors, float]]) -> _Row:
    """Several adapters on one row are one of the sum of their ranks."""
    if len(worn) == 1 and worn[0][0].norms is None:
        ((factors, weight),) = worn
        return _Row(number, factors.down, factors.up, weight)
    ups: list[torch.Tensor] = []
    gain: torch.Tensor | None = None
    for factors, weight in worn:
        ups.append(factors.up * weight)
        if factors.norms is not None:
            # as in peft, a DoRA scales what those before it have added, too
            own = factors.gain(weight)
            ups = [(up * own).to(up.dtype) for up in ups]
            gain = own if gain is None else gain * own
    down, up = torch.cat([f.down for f, _ in worn]), torch.cat(ups)
    return _Row(number, down, up, 1.0, None if gain is None else gain - 1)


def _gains(members: list[_Row]) -> torch.Tensor | None:
    gains = [row.gain for row in members if row.gain is not None]
    if not gains:
        return None
    zero = torch.zeros_like(gains[0])
    every = [zero if row.gain is None else row.gain for row in members]
    return torch.stack(every).unsqueeze(1).to(members[0].up.dtype)


def _bucket(rank: int) -> int:
    """Ranks of one bucket are padded to the largest: within 16, 64, 256, ..."""
    bucket = 16
    while bucket < rank:
        bucket *= 4
    return bucket


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    """rows x rank x ..., padded with zeros."""
    if len({len(tensor) for tensor in tensors}) == 1:
        return torch.stack(tensors)
    return pad_sequence(tensors, batch_first=True)
