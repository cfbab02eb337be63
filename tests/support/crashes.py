"""`make crash`: a server that is killed at random moments while clients change everything.

After each restart the state is what clients were told; a change that nobody heard the end of is
there or not, wholly. No file is left that belongs to nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil

from lorry_adapters.registry.blobs import digest_of
from support import peft_adapters, server, tiny
from support.believed import ADMIN, CONTENTS, HEADERS, STREAMS, Believed, check_answers
from support.patience import wait_until
from support.server import Server
from support.truth import Truth

START = 5.0
"""Seconds. About what a start takes; some kills come earlier."""
LIFE = 1.5
"""Seconds from the first request to the latest kill."""

Say = Callable[[str], object]


@dataclass(frozen=True)
class Scene:
    """A tiny base and adapters for it."""

    model: Path
    archives: Sequence[Path]
    digests: Sequence[str]
    truth: Truth

    @classmethod
    def made(cls, root: Path) -> Scene:
        model = tiny.save_model("llama", root / "model")
        truth, archives, digests = Truth(model), [], []
        for seed in range(CONTENTS):
            folder = root / f"adapter{seed}"
            peft_adapters.save_adapter("llama", model, "small", folder, seed=seed)
            digests.append(truth.learn(folder))
            assert digests[-1] == digest_of(folder)
            archives.append(peft_adapters.pack(folder, root / f"{seed}.zip"))
        return cls(model, archives, digests, truth)


def crash(scene: Scene, root: Path, seed: int, moments: int, say: Say = lambda text: None) -> str:
    """Kill a server `moments` times. Return what happened, in a line. Raises AssertionError."""
    dice = random.Random(seed)
    believed = Believed(scene.digests, scene.archives)
    home = root / "home"
    environment = {"LORRY_API_KEY": ADMIN}
    early = answers = 0

    def flags() -> list[str]:
        return ["--engine-process", dice.choice(["off", "off", "on"])]

    def checked() -> Server:
        running = server.start(scene.model, home, *flags(), env=environment)
        running.client.headers.update(HEADERS)
        believed.settle(running.client)
        believed.check_audit(running.client)
        wait_until(lambda: not left_over(home, believed), "nothing to be left over")
        return running

    for moment in range(moments):
        if dice.random() < 0.2:
            process, _ = server.launch(scene.model, home, *flags(), env=environment)
            time.sleep(dice.uniform(0.0, START))
            kill(process.pid)
            process.wait()
            early += 1
            say(f"{moment + 1}: in a start")
            continue
        running = checked()
        answers += check_answers(running.client, believed, scene.truth.tokens, dice)
        threading.Timer(dice.uniform(0.0, LIFE), partial(kill, running.pid)).start()
        with ThreadPoolExecutor(len(STREAMS)) as pool:
            changing = [
                pool.submit(
                    believed.run,
                    stream,
                    random.Random(f"{seed} {moment} {stream.names}"),
                    _always(running.client),
                    lambda: True,
                )
                for stream in STREAMS
            ]
        for one in changing:
            one.result()
        running.process.wait()
        running.client.close()
        say(f"{moment + 1}: {sum(believed.made.values())} changes so far")
    running = checked()
    assert running.stop() == 0
    assert not left_over(home, believed)
    made, unheard = sum(believed.made.values()), sum(believed.unheard.values())
    return (
        f"seed {seed}: killed {moments} times, {early} of them in a start; {made} changes "
        f"acknowledged, {unheard} unheard; {answers} answers compared; {believed.made_by_kind}"
    )


def _always(client: httpx.Client) -> Callable[[str], httpx.Client]:
    return lambda name: client


def kill(pid: int) -> None:
    """SIGKILL; its own processes have to end by themselves."""
    process = psutil.Process(pid)
    process.suspend()
    children = process.children(recursive=True)
    process.kill()
    psutil.wait_procs(children, timeout=None)


def left_over(home: Path, believed: Believed) -> set[str]:
    """What lies in the home folder and belongs to nothing, and what is missing."""
    owned = {digest.replace(":", "-") for digest in believed.owned()}
    wrong = {f"{path.name} ?" for path in (home / "blobs").iterdir()} ^ {f"{o} ?" for o in owned}
    for folder in ("staging", "expendable"):
        wrong |= {str(path) for path in (home / folder).iterdir()}
    records = {path.name.rpartition("-")[0] for path in (home / "records").glob("*-*.json")}
    wrong |= records ^ believed.adapters().keys()
    wrong |= {path.name for path in (home / "records").iterdir() if path.suffix != ".json"}
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--shared", type=int, default=40, help="kills of two servers' parts")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    given = parser.parse_args()
    say = partial(print, flush=True)
    say(f"seed {given.seed}")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        root = Path(folder)
        scene = Scene.made(root / "scene")
        if given.moments:
            say(crash(scene, root, given.seed, given.moments, say))
        if given.shared:
            # It is made of what is here.
            from support.shared_crashes import crash_parts

            say(crash_parts(scene, root, given.seed, given.shared, say))


if __name__ == "__main__":
    sys.exit(main())
