"""Seeded damage to files, and its effect: each mutant is used in a process of its own, with limits."""

import copy
import os
import random
import resource
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cocoseg.errors import CocosegError

SECONDS = 30  # for one mutant, on a busy machine
MEMORY = 2**30  # bytes, beyond those that the parent has
PLACES = 5000  # that may be changed; values that refer to each other have them without end
ACCEPTED, REFUSED = "accepted", "refused"


def outcome(use: Callable[[], object]) -> str:
    """ACCEPTED, REFUSED with one line, or else what went wrong."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        os.write(write, _use(use).encode(errors="replace"))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, errors="replace") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said or f"ended by signal {status}"


def _use(use: Callable[[], object]) -> str:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    try:
        use()
        return ACCEPTED
    except CocosegError as error:
        is_line = len(str(error)) < 2000 and str(error).isprintable()
        return REFUSED if is_line else f"not one printable line: {str(error)[:500]!r}"
    except BaseException:
        return traceback.format_exc()[-3000:]


def run(script: str, folder: Path) -> Counter[str]:
    """Run a script of mutants, without the threads of pytest, and count the lines that it prints."""
    path = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, str(folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Counter(done.stdout.splitlines())


def judge(name: str, use: Callable[[], object]) -> None:
    """Print how the use of a mutant ends; a fault ends the script."""
    found = outcome(use)
    print(found if found in (ACCEPTED, REFUSED) else f"{name}: {found}", flush=True)
    if found not in (ACCEPTED, REFUSED):
        sys.exit(1)


def changed(value: Any, odd: list[Any], rng: random.Random) -> Any:
    """Copy plain values, with one to three of them replaced by odd ones, left out, repeated or swapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = rng.choice(list(islice(_places(value), PLACES)))
        action = rng.choice(("replace", "replace", "replace", "remove", "repeat", "swap"))
        if action == "remove":
            del holder[key]
        elif action == "repeat" and isinstance(holder, list):
            holder.insert(rng.randint(0, len(holder)), holder[key])
        elif action == "swap" and (others := [k for k in _keys(holder) if k != key]):
            other = rng.choice(others)
            holder[key], holder[other] = holder[other], holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(odd))
    return value


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value)))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in _keys(value):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut off, leave out, repeat or put in some bytes."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        begin = rng.randrange(len(content) + 1)
        end = min(len(content), begin + rng.choice((1, 2, 8, 100)))
        part = content[begin:end]
        content = content[:begin] + rng.choice(
            (
                bytes(byte ^ 1 << rng.randrange(8) for byte in part) + content[end:],
                rng.randbytes(len(part)) + content[end:],
                part + part + content[end:],
                content[end:],
                b"",
            )
        )
    return content
