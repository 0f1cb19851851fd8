"""Records from Kafka topics, by partitions that the job itself keeps the positions of."""

from __future__ import annotations

import importlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from streamml.connectors.kafka_address import KafkaAddress
from streamml.connectors.kafka_admin import require_topics
from streamml.connectors.kafka_client import Reader, Unavailable, client_module, log, patiently
from streamml.connectors.kafka_fetch import Partition
from streamml.connectors.kafka_places import end_offsets, name_of, partition_of, start_offsets
from streamml.connectors.kafka_tally import Tally
from streamml.errors import ConnectorError
from streamml.observability.metrics import Metrics
from streamml.ports import Chunk

__all__ = ["KafkaSource"]

_VERSION = 1


class KafkaSource:
    """Reads all partitions of its topics, from the positions of the checkpoint or, without one, from `start=`.

    The checkpoint decides; what is committed for the group is for tools that show the lag, and for `start=committed`
    of a job
    without state. A partition that is new is found within `refresh=` (30 s) and read from its beginning.

    Args:
        address: what to read.
        clock: monotonic seconds.
    """

    replayable = True

    def __init__(self, address: KafkaAddress, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost = 0
        """Records that retention had removed before they were read (`on_data_loss=earliest`)."""
        self._address = address
        self._clock = clock
        self._group = address.options.get("group")
        self._patience = address.patience
        self._refresh = address.millis("refresh", "30s") / 1000
        self._go_on = address.choice("on_data_loss", "fail", "earliest") == "earliest"
        self._skip_empty = address.choice("tombstones", "reject", "skip") == "skip"
        self._reader: Reader | None = None
        self._positions: dict[Partition, int] = {}
        self._begun: dict[Partition, int] = {}
        self._until: dict[Partition, int] | None = None
        self._times: dict[Partition, int] = {}
        self._live: set[Partition] = set()
        self._names: dict[Partition, str] = {}
        self._committed: dict[Partition, int] = {}
        self._next_refresh = 0.0
        self._tally = Tally()

    def for_job(self, job: str, interval: int) -> None:
        """Say which job it belongs to, before anything else; its name is the group unless `group=` gives one."""
        self._group = self._group or job

    def open(self, positions: Mapping[str, Any] | None) -> None:
        """See `Source.open`.

        Raises:
            ConnectorError: brokers, rights or topics are not as they must be, or records at the positions are not
            there any more.
        """
        where = self._address.where
        self._reader = importlib.import_module(client_module(self._address)).make_reader(
            self._address, self._group, self._tally
        )
        stored, until = self._stored(positions)
        there = self._patiently(self._look)
        exact = [topic for topic in self._address.topics if not topic.startswith("^")]
        if require_topics(self._address, exact, {topic for topic, _ in there}, self._patience):  # type: ignore[arg-type]
            there = self._patiently(self._look)
        if gone := sorted(stored.keys() - set(there)):
            msg = (
                f"{where}: the checkpoint has a position in {name_of(gone[0])}, which is not there any more. The "
                "topic was "
                "made anew or renamed: give the old one, or start without the checkpoint."
            )
            raise ConnectorError(msg)
        fresh = [partition for partition in there if partition not in stored]
        places = dict(stored)
        for partition, offset in stored.items():
            places[partition] = self._within(partition, offset)
        if positions is None:
            starts = self._patiently(lambda reader: start_offsets(self._address, reader, fresh))
            places.update({partition: self._within(partition, offset) for partition, offset in starts.items()})
        else:
            places.update({partition: self._range(partition)[0] for partition in fresh})
        if "until" in self._address.options:
            if all(stored.get(partition, 0) >= end for partition, end in until.items()):
                until = {}  # that was reached, so this is a new run, up to what is the latest now
            missing = [partition for partition in there if partition not in until]
            self._until = {**until, **self._patiently(lambda reader: end_offsets(self._address, reader, missing))}
        self._begun = dict(places)
        self._add(places)
        self._note("added", places)
        self._next_refresh = self._clock() + self._refresh

    def poll(self, limit: int, timeout: float) -> Chunk | None:
        """See `Source.poll`.

        Raises:
            ConnectorError: the brokers refuse, are away for longer than `give_up_after`, or records were lost to
            retention.
        """
        reader = self._opened()
        if self._until is None and self._clock() >= self._next_refresh:
            self._find_new()
        fetch = reader.poll(limit, timeout)
        for partition in fetch.lost:
            self._move(partition)
        if self._until is not None:
            fetch.cut(self._until)
        row = 0
        for partition, count in fetch.runs:
            row += count
            self._tally.count("streamml_kafka_records_read_total", count, **_labels(partition))
            self._positions[partition] = fetch.offsets[row - 1] + 1
            self._times[partition] = fetch.times[row - 1]
        for (
            partition,
            end,
        ) in fetch.ends.items():  # what a partition has at its end beside records, such as marks of transactions
            if end > self._positions.get(partition, end):
                self._positions[partition] = end
        if self._until is not None and (done := [at for at in self._live if self._is_done(at)]):
            self._live.difference_update(done)
            self._note("ended", done)
            reader.drop(done)
        if not fetch.payloads:
            if reader.down_for() * 1000 > self._patience:
                patiently(self._address.where, lambda: self._look(reader), 0)
            return None
        payloads: list[Any] = fetch.payloads
        if None in payloads:
            if self._skip_empty:
                fetch.drop_empty()
                if not fetch.payloads:
                    return None
            payloads = [b"" if payload is None else payload for payload in fetch.payloads]
        names = self._names
        runs = [(names[partition], count) for partition, count in fetch.runs]
        return Chunk(payloads, runs, fetch.offsets, fetch.keys, fetch.times, fetch.traces)

    def positions(self) -> dict[str, Any]:
        """See `Source.positions`."""
        found: dict[str, Any] = {
            "version": _VERSION,
            "format": "kafka",
            "offsets": {self._names[at]: offset for at, offset in sorted(self._positions.items())},
        }
        if self._until is not None:
            found["until"] = {self._names[at]: offset for at, offset in sorted(self._until.items())}
        return found

    def committed(self, positions: Mapping[str, Any]) -> None:
        """Note that a checkpoint with these positions took place: they are committed for the group, without waiting."""
        offsets = {partition_of(name): offset for name, offset in positions["offsets"].items()}
        changed = {at: offset for at, offset in offsets.items() if self._committed.get(at) != offset}
        self._commit(changed, wait=False)
        self._committed.update(changed)

    def partitions(self) -> Sequence[str]:
        """See `Source.partitions`."""
        return [self._names[partition] for partition in self._positions if not self._is_done(partition)]

    @property
    def finished(self) -> bool:
        """See `Source.finished`: with `until=`, everything up to there was handed out."""
        return self._until is not None and all(map(self._is_done, self._positions))

    def progress(self) -> float | None:
        """See `Source.progress`."""
        if self._until is None:
            return None
        total = sum(max(0, end - self._begun[at]) for at, end in self._until.items())
        done = sum(max(0, min(self._positions[at], end) - self._begun[at]) for at, end in self._until.items())
        return done / total if total else 1.0

    def lag(self) -> dict[str, int]:
        """See `Source.lag`: records up to the end of each partition, as the broker said with the last records."""
        reader = self._opened()
        ends = {at: reader.high(at) if self._until is None else self._until[at] for at in self._positions}
        return {self._names[at]: max(0, end - self._positions[at]) for at, end in ends.items() if end is not None}

    def lag_seconds(self, now: int) -> dict[str, float]:
        """Return for each partition how old the last record read is, 0 where none waits.

        Args:
            now: wall clock, ms.
        """
        waiting = self.lag()
        ages = {self._names[at]: max(0.0, (now - then) / 1000) for at, then in self._times.items()}
        return {name: age if waiting.get(name) else 0.0 for name, age in ages.items()}

    def measure(self, metrics: Metrics, now: int) -> None:
        """Count records and errors in this registry, and show the lag of each partition (`streamml_kafka_...`)."""
        if self._reader is None:
            return
        self._tally.publish(metrics)
        lags, ages = self.lag(), self.lag_seconds(now)
        for partition, position in self._positions.items():
            name, labels = self._names[partition], _labels(partition)
            metrics.gauge("streamml_kafka_position_events", **labels).set(position)
            if name in ages or not lags.get(name):  # else nothing was read yet of what waits
                metrics.gauge("streamml_kafka_lag_seconds", **labels).set(ages.get(name, 0.0))
            if name in lags:
                metrics.gauge("streamml_kafka_lag_events", **labels).set(lags[name])
        live = Counter(topic for topic, _ in self._live)
        for topic in {topic for topic, _ in self._positions}:
            metrics.gauge("streamml_kafka_partitions_count", topic=topic).set(live[topic])
        metrics.gauge("streamml_kafka_down_seconds").set(self._reader.down_for())

    def close(self) -> None:
        """See `Source.close`."""
        reader, self._reader = self._reader, None
        if reader is not None:
            try:
                reader.commit(self._committed, wait=True)  # what was sent without waiting may not have arrived
            except ConnectorError as exc:
                log.warning(
                    "%s: group %s: its positions could not be committed: %s", self._address.where, self._group, exc
                )
            finally:
                reader.close()

    def _stored(self, positions: Mapping[str, Any] | None) -> tuple[dict[Partition, int], dict[Partition, int]]:
        if positions is None:
            return {}, {}
        if positions.get("format") != "kafka" or positions.get("version") != _VERSION:
            msg = (
                f"{self._address.where}: wanted Kafka positions of version {_VERSION}, got those of another source "
                "or another "
                "version of streamml. Give the source that the checkpoint was taken with, or start without it."
            )
            raise ConnectorError(msg)
        found = [
            {partition_of(name): at for name, at in positions.get(kind, {}).items()} for kind in ("offsets", "until")
        ]
        return found[0], found[1]

    def _look(self, reader: Reader) -> list[Partition]:
        """Return the partitions of all topics that are there."""
        patterns = [re.compile(topic) for topic in self._address.topics if topic.startswith("^")]
        exact = [topic for topic in self._address.topics if not topic.startswith("^")]
        found = reader.partitions(None if patterns else exact)
        wanted = {topic for topic in found if any(pattern.match(topic) for pattern in patterns)}
        wanted = {topic for topic in wanted if not topic.startswith("__")} | set(exact)
        return [(topic, number) for topic in sorted(wanted & found.keys()) for number in found[topic]]

    def _find_new(self) -> None:
        self._next_refresh = self._clock() + self._refresh
        try:
            new = [partition for partition in self._look(self._opened()) if partition not in self._positions]
            self._add({partition: self._opened().range(partition)[0] for partition in new})
            self._note("added", new)
        except Unavailable as exc:
            log.info("%s: new partitions could not be looked for: %s", self._address.where, exc)

    def _add(self, places: Mapping[Partition, int]) -> None:
        self._positions.update(places)
        self._names.update({partition: name_of(partition) for partition in places})
        live = {partition: offset for partition, offset in places.items() if not self._is_done(partition)}
        self._live.update(live)
        self._patiently(lambda reader: reader.add(live))

    def _note(self, event: str, partitions: Iterable[Partition]) -> None:
        for topic, count in Counter(topic for topic, _ in partitions).items():
            self._tally.count("streamml_kafka_assignments_total", count, topic=topic, event=event)

    def _is_done(self, partition: Partition) -> bool:
        return self._until is not None and self._positions[partition] >= self._until[partition]

    def _range(self, partition: Partition) -> tuple[int, int]:
        found: tuple[int, int] = self._patiently(lambda reader: reader.range(partition))
        return found

    def _within(self, partition: Partition, offset: int) -> int:
        """Return the offset if records can be read from there, else what `on_data_loss=` says."""
        low, high = self._range(partition)
        if low <= offset <= high:
            return offset
        gone = (
            f"{low - offset} records were removed by retention"
            if offset < low
            else "the topic was made anew or cut short"
        )
        if not self._go_on:
            msg = (
                f"{self._address.where}: the next record of {name_of(partition)} is {offset}, and the broker has "
                f"{low} to {high}: "
                f"{gone} before they were read. To go on with the first one that is there, add "
                "on_data_loss=earliest; to keep "
                "more, raise retention.ms of the topic."
            )
            raise ConnectorError(msg)
        self.lost += max(0, low - offset)
        self._tally.count("streamml_kafka_records_lost_total", max(0, low - offset), topic=partition[0])
        log.warning("%s: %s goes on at %d, not at %d: %s", self._address.where, name_of(partition), low, offset, gone)
        return low

    def _move(self, partition: Partition) -> None:
        place = self._within(partition, self._positions[partition])
        self._opened().drop([partition])
        self._add({partition: place})
        self._note("moved", [partition])

    def _commit(self, offsets: Mapping[Partition, int], *, wait: bool) -> None:
        try:
            self._opened().commit(offsets, wait=wait)
        except ConnectorError as exc:  # the checkpoint decides; this is for tools
            log.warning("%s: group %s: its positions could not be committed: %s", self._address.where, self._group, exc)

    def _opened(self) -> Reader:
        assert self._reader is not None, "used before open, or after close"
        return self._reader

    def _patiently(self, action: Callable[[Reader], Any]) -> Any:
        reader = self._opened()

        def retried() -> None:
            self._tally.count("streamml_kafka_retries_total", role="source")

        return patiently(self._address.where, lambda: action(reader), self._patience, retried=retried)


def _labels(partition: Partition) -> dict[str, str]:
    return {"topic": partition[0], "partition": str(partition[1])}
