"""The registry of models: versions that never change, and the append-only history of what is rolled out.

```
PLACE/NAME/VERSION/bundle.json ...     a version
PLACE/NAME/rollouts/000001.json        a record of the history, with the SHA-256 of the one before it
```
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from streamml.errors import ModelError, suggest
from streamml.models.bundle import Bundle
from streamml.models.manifest import MANIFEST, write_manifest
from streamml.models.registry_record import decode_record, encode_record
from streamml.models.registry_store import ROLLOUTS, FolderStore, Store
from streamml.models.rollout import Guard, History, Rollout, Split
from streamml.models.signing import SIGNATURE

__all__ = ["Conflict", "Registry"]

_RECORD = re.compile(r"(\d{6,})\.json")


class Conflict(ModelError):
    """Raised when a record was written against a history that has moved on; read it again and decide anew."""


class _Version(msgspec.Struct):
    version: int


class Registry:
    """Models by name: their versions and their histories. Any number of processes may read and write at once.

    A version or a record appears whole or not at all, and never changes afterwards. Nothing is held in memory: each
    call looks anew.

    Args:
        place: a folder, or any address of fsspec such as `s3://bucket/models` (needs the extra `fsspec`).

    >>> Registry("/nowhere").names()
    []
    """

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        self._store = _open(self.place)
        self._where = self._store.where

    def __repr__(self) -> str:
        return f"Registry({self._where!r})"

    def names(self) -> list[str]:
        """Return the names of the models that have a version."""
        return [name for name in self._store.names() if self._store.bundles(name)]

    def versions(self, name: str) -> list[int]:
        """Return the versions of a model, rising; none when there is no such model."""
        return sorted(self._folders(name))

    def path(self, name: str, version: int) -> Path:
        """Return a local folder with a version's bundle.

        Raises:
            ModelError: there is no such version; lists what is there.
        """
        folders = self._folders(name)
        if version not in folders:
            raise self._absent(name, version, folders)
        return self._store.fetch(name, folders[version])

    def records(self, name: str) -> list[Rollout]:
        """Return the history of a model, all aliases, oldest first; empty when nothing was rolled out.

        Raises:
            ModelError: a record is missing, damaged, or does not follow from the one before.
        """
        return self._chain(name)[0]

    def history(self, name: str, alias: str = "prod") -> History:
        """Return the rollouts of an alias, by event time.

        Raises:
            ModelError: nothing was rolled out under this alias, or the history is damaged.
        """
        records = self.records(name)
        found = [record for record in records if record.alias == alias]
        if not found:
            known = suggest(alias, {record.alias for record in records})
            msg = (
                f"model {name}@{alias}: {self._where} has no rollout of it. {known} "
                f"`streamml models promote {name}:VERSION --alias {alias}` writes one"
            )
            raise ModelError(msg)
        return History(found)

    def champion(self, name: str, alias: str = "prod", at: int | None = None) -> int:
        """Return the version that an alias means at a time; `prod` without a history is the highest version.

        Args:
            name: name of the model.
            alias: the alias.
            at: event time in milliseconds; None is now.

        Raises:
            ModelError: there is no such model or alias, or the alias was retired.
        """
        records = [record for record in self.records(name) if record.alias == alias]
        versions = self.versions(name)
        if not records and alias == "prod" and versions:
            return versions[-1]
        if not versions:
            raise self._absent(name, None, {})
        rollout = self.history(name, alias).at(now() if at is None else at)
        if rollout.action == "retire":
            msg = f"model {name}@{alias}: was retired by {rollout.who} ({rollout.why or 'no reason given'})"
            msg += "; promote a version, or name another alias"
            raise ModelError(msg)
        return rollout.champion

    def stamp(self, name: str) -> object:
        """Return something that changes when there is a new record: cheap, for looking each second.

        Raises:
            ModelError: the model is not there (any more), or the registry can't be read.
        """
        names = self._store.names(name)
        if not names:
            msg = f"model {name}: {self._where} has no such model (any more); restore the registry or its mount"
            raise ModelError(msg)
        return max((n for n in self._store.names(name, ROLLOUTS) if _RECORD.fullmatch(n)), default="")

    def append(
        self,
        name: str,
        alias: str,
        action: str,
        *,
        effective: int,
        champion: int,
        splits: Sequence[Split] = (),
        shadows: Sequence[int] = (),
        guard: Guard | None = None,
        who: str,
        why: str,
        at: int,
        refused: int = 0,
        after: int | None = None,
    ) -> Rollout:
        """Write the next record of a model's history, and return it. It is on the disk when this returns.

        Args:
            name: name of the model.
            alias: the alias.
            action: why it is written, see `Rollout`.
            effective: event time in milliseconds from which it holds.
            champion: version that scores.
            splits: other versions that score a share of the keys.
            shadows: versions that score as well, without effect.
            guard: limits of the canary.
            who: who writes it.
            why: the reason.
            at: wall clock in milliseconds.
            refused: number of the rollout that a `refuse` takes back.
            after: number of the record that the decision was based on; None writes in any case.

        Raises:
            Conflict: another record was written after the one named by `after`.
            ModelError: a version is not there, the shares do not fit, or the registry can't be written.
        """
        made = Rollout(
            number=0,
            alias=alias,
            action=action,
            effective=effective,
            champion=champion,
            splits=tuple(splits),
            shadows=tuple(shadows),
            guard=guard,
            at=at,
            who=who,
            why=why,
            refused=refused,
        )
        self._check(name, made)
        while True:
            records, previous = self._chain(name)
            if after is not None and len(records) != after:
                msg = f"model {name}: record {len(records)} was written since; look at the history and decide anew"
                raise Conflict(msg)
            rollout = msgspec.structs.replace(made, number=len(records) + 1, previous=previous)
            if self._store.create(encode_record(rollout), name, ROLLOUTS, f"{rollout.number:06}.json"):
                return rollout

    def next_version(self, name: str) -> int:
        """Return the number that the next version of a model will get, unless another writer is faster."""
        taken = [int(each) for each in self._store.names(name) if _is_number(each)] if _is_name(name) else []
        return max([*taken, *self.versions(name)], default=0) + 1

    def add(self, name: str, bundle_folder: str | Path) -> int:
        """Copy a bundle in as the next version of a model, and return its number.

        The copy's description gets that name and number. Its files are checked, but it is not run.

        Raises:
            Conflict: the bundle is signed as another version than the next one.
            ModelError: the bundle is damaged, the name can't be one, or the registry can't be written.
        """
        if not _is_name(name):
            msg = f"model {name!r}: wanted a name without ':', '@', '/' and a leading '.'"
            raise ModelError(msg)
        source = Bundle.load(bundle_folder)
        source.check_files()
        said = source.manifest
        with self._store.scratch(name) as folder:
            signed = SIGNATURE in _copy(source, folder)
            while True:
                version = self.next_version(name)
                if not signed:
                    write_manifest(folder, msgspec.structs.replace(said, name=name, version=version))
                elif (said.name, said.version) != (name, version):
                    msg = (
                        f"{source.where}: is signed under this name and number, but would be {name}:{version} in "
                        f"{self._where}; write it with that name and number, then sign it"
                    )
                    raise Conflict(msg)
                Bundle.load(folder).check_files()
                if self._store.publish(folder, name, version):
                    return version

    def put(self, bundle: Bundle) -> bool:
        """Copy a bundle in under its own name and number; return False when that number is taken.

        Raises:
            ModelError: the registry can't be written.
        """
        said = bundle.manifest
        with self._store.scratch(said.name) as folder:
            _copy(bundle, folder)
            return self._store.publish(folder, said.name, said.version)

    def mirror(self, name: str, folder: str | Path) -> None:
        """Make a copy of a model's history in a folder, with links to its versions, for runs that must write nothing.

        Raises:
            ModelError: the registry can't be read.
        """
        base = Path(folder) / name
        (base / ROLLOUTS).mkdir(parents=True)
        for version in self.versions(name):
            (base / str(version)).symlink_to(self.path(name, version).resolve(), target_is_directory=True)
        for number in range(1, len(self.records(name)) + 1):
            file = f"{number:06}.json"
            (base / ROLLOUTS / file).write_bytes(self._store.read(name, ROLLOUTS, file))

    def _folders(self, name: str) -> dict[int, str]:
        """Return each version with its folder: numbered ones, and the one bundle in the model's own folder."""
        found = self._store.bundles(name) if _is_name(name) else []
        folders = {int(each): each for each in found if _is_number(each)}
        if "" in found:
            data = self._store.read(name, MANIFEST)
            try:
                folders.setdefault(msgspec.json.decode(data, type=_Version).version, "")
            except msgspec.DecodeError as exc:
                msg = f"model {name}: {MANIFEST} in {self._where}/{name} is damaged ({exc}); restore it"
                raise ModelError(msg) from exc
        return folders

    def _check(self, name: str, rollout: Rollout) -> None:
        folders = self._folders(name)
        for version in rollout.versions:
            if version not in folders:
                raise self._absent(name, version, folders)
        shares = [split.percent for split in rollout.splits]
        arms = [rollout.champion, *(split.version for split in rollout.splits)]
        if any(not 0 < share <= 100 for share in shares) or sum(shares) > 100 or len(set(arms)) < len(arms):
            got = ", ".join(f"{split.version} at {split.percent} %" for split in rollout.splits)
            msg = (
                f"model {name}@{rollout.alias}: wanted shares above 0 % that make at most 100 %, of different versions "
                f"other than the champion {rollout.champion}; got {got}"
            )
            raise ModelError(msg)

    def _chain(self, name: str) -> tuple[list[Rollout], str]:
        """Return the records and the SHA-256 of the last one."""
        names = self._store.names(name, ROLLOUTS) if _is_name(name) else []
        numbers = sorted(int(m[1]) for each in names if (m := _RECORD.fullmatch(each)))
        files = [f"{number:06}.json" for number in range(1, (numbers[-1] if numbers else 0) + 1)]
        stored = self._store.read_records(name, files)
        records: list[Rollout] = []
        previous = ""
        for number, file in enumerate(files, 1):
            where = f"model {name}: record {file} of its history in {self._where}"
            if file not in stored:
                msg = f"{where} is missing (the last one is {files[-1]}); restore it from a copy"
                raise ModelError(msg)
            rollout, digest = decode_record(where, stored[file])
            if rollout.number != number or rollout.previous != previous:
                msg = (
                    f"{where} does not follow from the record before it (wanted number {number} after "
                    f"{previous[:12] or 'nothing'}, got number {rollout.number} after "
                    f"{rollout.previous[:12] or 'nothing'}); one of them was changed: restore both from a copy"
                )
                raise ModelError(msg)
            records.append(rollout)
            previous = digest
        return records, previous

    def _absent(self, name: str, version: int | None, folders: dict[int, str]) -> ModelError:
        if not folders:
            msg = f"model {name}: {self._where} has no model {name!r}. {suggest(name, self.names())}"
            return ModelError(msg)
        known = ", ".join(map(str, sorted(folders)))
        return ModelError(f"model {name}: {self._where} has no version {version}; versions there: {known}")


def now() -> int:
    """Return the wall clock in milliseconds."""
    return int(time.time() * 1000)


def _is_name(name: str) -> bool:
    return bool(name) and not name.startswith(".") and not set(name) & set(":@/\\")


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _copy(bundle: Bundle, folder: Path) -> set[str]:
    """Copy what belongs to a bundle; return the names of the files."""
    said = bundle.manifest
    files = {MANIFEST, said.model, *said.files, *([SIGNATURE] if (bundle.path / SIGNATURE).is_file() else [])}
    for file in files:
        shutil.copyfile(bundle.path / file, folder / file)
    return files


def _open(place: str) -> Store:
    if "://" not in place:
        return FolderStore(Path(place))
    from streamml.models.registry_url import open_url

    return open_url(place)
