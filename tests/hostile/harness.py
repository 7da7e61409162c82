"""Hostile inputs against the command line: each is done right, or refused in one line.

A test draws inputs of one class from a fixed seed and hands each command to `Proof.attempt`, which
runs it in this process and holds it to the promise: exit 0 and the right value, or exit 2 and one
line under 300 characters, no traceback, nothing changed on disk, memory under a bound. The
`hostile` fixture makes the proof and, when the test is over, fails it if any attempt fell short.

SOFTTRUNC_HOSTILE=N in the environment tries N times as many, and with any N above 1 all of what
is a list; the default run takes a part of each, so that it takes a minute. SOFTTRUNC_HOSTILE_SEED=S
draws other inputs of the same kinds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import re
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

LONGEST_LINE = 300
MOST_MEMORY = 512 << 20
MOST_SECONDS = 30.0
_SHOWN = 8
# What moves the cursor, colours, or turns the direction of writing.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
T = TypeVar("T")


def times(count: int) -> int:
    """How many inputs to try where `count` are the default."""
    return count * int(os.environ.get("SOFTTRUNC_HOSTILE", "1"))


def at_length() -> bool:
    """Whether more is asked for than the default run."""
    return times(1) > 1


def seeded(name: int | str) -> random.Random:
    """Random numbers of a test; others for every SOFTTRUNC_HOSTILE_SEED."""
    seed = os.environ.get("SOFTTRUNC_HOSTILE_SEED")
    return random.Random(name if seed is None else f"{name} {seed}")


def part(items: Iterable[T], count: int) -> list[T]:
    """`count` of these, the same ones every time; all of them at length."""
    every = list(items)
    if at_length() or count >= len(every):
        return every
    return [every[i] for i in sorted(random.Random(0).sample(range(len(every)), count))]


class Outcome(NamedTuple):
    """What a command did.

    - `code`: its exit code; None: an exception left it.
    - `seconds`: of the processor's, which do not depend on what else the machine does.
    - `out`, `err`: what it printed; the traceback of an exception stands at the end of `err`.
    - `memory`: bytes by which the process grew at most; 0 where the system does not tell.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    memory: int

    @property
    def refusal(self) -> str:
        """The last line on standard error."""
        return self.err.strip().rpartition("\n")[2]


def run(*arguments: object) -> Outcome:
    """Run `softtrunc ARGUMENTS` in this process."""
    from softtrunc.cli import main

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="")
    code: int | None = None
    began, resident = time.process_time(), _begin_memory()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with warnings.catch_warnings(), _no_longer_than(5 * MOST_SECONDS):
                warnings.simplefilter("ignore")
                code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = int(stopped.code or 0) if not isinstance(stopped.code, str) else 1
        except BaseException:
            traceback.print_exc()
        out.flush()
        err.flush()
    seconds, memory = time.process_time() - began, _peak_memory() - resident
    shown = (each.buffer.getvalue().decode("utf-8", "replace") for each in (out, err))
    return Outcome(code, *shown, seconds, max(memory, 0))


class Stuck(BaseException):
    """A command waits for what will not come, as for somebody to write into a pipe."""


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Stuck(f"after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _status(word: str) -> int:
    """A number of kB that Linux tells of this process; 0 elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{word}:"):
                return int(line.split()[1]) << 10
    return 0


def _begin_memory() -> int:
    """Forget the highest size so far; the present one."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 1 << 62  # the highest size is of all that ran before: nothing can be told
    return _status("VmRSS")


def _peak_memory() -> int:
    return _status("VmHWM")


def snapshot(folder: Path) -> dict[str, str]:
    """Every file, folder and link below a folder, and what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        if path.is_symlink():
            found[name] = f"link to {path.readlink()!r}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special file"
    return found


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names that came, went or changed."""
    return sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))


class Proof:
    """Attempts of one class, counted; what falls short is kept with the reason.

    Args:
        folder: where the inputs lie: the working directory of every command.
        kept: a copy of it, for `restore`.
    """

    def __init__(self, folder: Path, kept: Path | None = None) -> None:
        self.folder = folder
        self.kept = kept or folder
        self.tried = 0
        self.short: list[str] = []
        self.refused = 0

    def attempt(
        self,
        what: str,
        *arguments: object,
        right: Callable[[Outcome], object] | None = None,
        codes: Collection[int] = (0, 2),
        writes: Collection[str] = (),
        restore: bool = False,
        memory: int = MOST_MEMORY,
        seconds: float = MOST_SECONDS,
    ) -> Outcome:
        """Run one command and judge it.

        Args:
            what: the input in a few words.
            arguments: of the command.
            right: called after exit 0; an AssertionError says that the value is not right. None:
                the command is to be refused.
            codes: exit codes that are right (0 only with `right`).
            writes: names in the folder that a command that ends well may write. They are removed
                afterwards.
            restore: a command that ends well may write anywhere in the folder, which is then put
                back as it was.
            memory, seconds: the most that it may take.
        """
        before = snapshot(self.folder)
        outcome = run(*arguments)
        changed = differences(before, snapshot(self.folder))
        self.tried += 1
        self.refused += outcome.code == 2
        problems = _complaints(outcome, codes, memory, seconds)
        if outcome.code == 0:
            changed = [n for n in changed if not any(_inside(n, place) for place in writes)]
            if right is None:
                problems.append("was taken")
            else:
                try:
                    right(outcome)
                except AssertionError as error:
                    problems.append(f"not the right value: {' '.join(str(error).split())[:200]}")
        if restore and outcome.code == 0:
            self._put_back(changed)
            changed = []
        if changed:
            problems.append(f"changed on disk: {', '.join(changed[:5])}")
        for name in writes:
            _remove(self.folder / name)
        if problems:
            self.short.append(f"{what}: {'; '.join(problems)}")
        return outcome

    def _put_back(self, names: Collection[str]) -> None:
        """Undo what a command did."""
        for name in sorted(names):
            path, kept = self.folder / name, self.kept / name
            if path.is_symlink() or path.exists():
                _remove(path)
            if kept.is_dir() and not kept.is_symlink():
                path.mkdir()
            elif kept.is_symlink() or kept.exists():
                shutil.copy2(kept, path, follow_symlinks=False)

    def verdict(self) -> str:
        """Counts, and the first attempts that fell short."""
        counts = f"tried {self.tried}, refused {self.refused}, short {len(self.short)}"
        return "\n  ".join([counts, *self.short[:_SHOWN]])


def _inside(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}/")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _complaints(outcome: Outcome, codes: Collection[int], memory: int, seconds: float) -> list[str]:
    """What is wrong with how a command ended, whatever it was asked."""
    found = []
    line = outcome.refusal
    if outcome.code is None:
        found.append(f"traceback: {line[:200]}")
    elif outcome.code not in codes:
        found.append(f"exit {outcome.code}: {line[:200]}")
    elif outcome.code:
        told = [each for each in outcome.err.splitlines() if each.startswith("softtrunc: ")]
        if "Traceback" in outcome.err:
            found.append(f"a traceback is printed: {line[:200]}")
        elif len(told) != 1 or told[0] != line:
            found.append(f"{len(told)} lines of refusal, the last line {line[:100]!r}")
        elif len(line) >= LONGEST_LINE:
            found.append(f"a line of {len(line)} characters: {line[:100]} ...")
    if outcome.code is not None and (control := _CONTROL.search(outcome.out + outcome.err)):
        found.append(f"prints the control character {control[0]!r}")
    if outcome.memory > memory:
        found.append(f"took {outcome.memory >> 20} MiB")
    if outcome.seconds > seconds:
        found.append(f"took {outcome.seconds:.0f} s")
    return found
