"""The PyFlink functions around a `StageHost`: state, timers and outputs are Flink's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyflink.common import Types
from pyflink.datastream import KeyedProcessFunction, ProcessFunction, RuntimeContext, TimeDomain
from pyflink.datastream.state import MapStateDescriptor

from streamml.flink.host import Group, HostPlan, StageHost
from streamml.flink.metrics import StageMeter
from streamml.flink.store import FlinkMaps
from streamml.flink.watermark import from_flink, to_flink
from streamml.pickling import dumps, loads
from streamml.state.descriptors import NEVER

__all__ = ["BYTES", "KeyedStageFunction", "StageFunction"]

BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())


def _opened(data: bytes) -> StageHost:
    plan: HostPlan = loads(data)
    host = StageHost(plan)
    host.open(StageMeter() if not plan.scripted and not plan.typed else None)
    return host


class StageFunction(ProcessFunction):
    """Hosts a stage without a key."""

    def __init__(self, plan: HostPlan) -> None:
        self._plan = dumps(plan)
        self._host: StageHost
        self._group: Group

    def open(self, runtime_context: RuntimeContext) -> None:
        self._host = _opened(self._plan)
        self._group = self._host.whole()

    def close(self) -> None:
        self._host.close()

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterator[bytes]:
        service = ctx.timer_service()
        watermark, now = from_flink(service.current_watermark()), service.current_processing_time()
        payload, count = value[1]
        yield from self._host.batch(self._group, payload, count, watermark, now)


class KeyedStageFunction(KeyedProcessFunction):
    """Hosts a keyed stage; Flink's key is the number of a key group."""

    def __init__(self, plan: HostPlan) -> None:
        self._plan = dumps(plan)
        self._host: StageHost
        self._groups: dict[int, Group] = {}
        self._timers: dict[tuple[int, int], int] = {}
        """Earliest Flink timer that is set, by (number of the group, 0 event time or 1 processing time)."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self._host = _opened(self._plan)
        rows, entries, timers = (
            runtime_context.get_map_state(MapStateDescriptor(name, BYTES, BYTES))
            for name in ("rows", "entries", "timers")
        )
        self._maps = FlinkMaps(rows, entries, timers)

    def close(self) -> None:
        self._host.close()

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[bytes]:
        service, number = ctx.timer_service(), ctx.get_current_key()
        watermark, now = from_flink(service.current_watermark()), service.current_processing_time()
        group = self._group(number)
        yield from self._host.batch(group, value[0], value[1], watermark, now)
        self._set_timers(number, group, service)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[bytes]:
        service, number = ctx.timer_service(), ctx.get_current_key()
        now = service.current_processing_time()
        group = self._group(number)
        if ctx.time_domain() == TimeDomain.EVENT_TIME:
            self._timers.pop((number, 0), None)
            outputs = self._host.advance(group, from_flink(service.current_watermark()), now)
        else:
            self._timers.pop((number, 1), None)
            outputs = self._host.tick(group, max(now, timestamp))
        yield from outputs
        self._set_timers(number, group, service)

    def _group(self, number: int) -> Group:
        group = self._groups.get(number)
        if group is None:
            group = self._groups[number] = self._host.group(self._maps)
        return group

    def _set_timers(self, number: int, group: Group, service: Any) -> None:
        due = group.next_event_time
        if due < self._timers.get((number, 0), NEVER):
            self._timers[number, 0] = due
            service.register_event_time_timer(to_flink(due))
        due = group.runtime.next_processing_time
        if due < self._timers.get((number, 1), NEVER):
            self._timers[number, 1] = due
            service.register_processing_time_timer(due)
