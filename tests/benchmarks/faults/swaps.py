"""Models are swapped under load, some of them damaged."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from siserve.bundle import Description
from siserve.bundle.manifest import seal
from siserve.bundle.tensors import MANIFEST_FILE, WEIGHTS_FILE
from siserve.bundle.verify import digest_file
from siserve.client import AsyncClient, Client, ClientError

from .server import Served, start
from .trial import Setting, Verdict

__all__ = ["swaps", "version_of"]

_DIALOG = [("A", "do you have any pets"), ("B", "yes two dogs and a cat")]
_ASK = {"n": 4, "seed": 11, "max_tokens": 8}


def version_of(bundle: Path, target: Path, version: int, is_other: bool) -> Path:
    """Copy a bundle under another version; the other model's decoder begins elsewhere."""
    shutil.copytree(bundle, target)
    content = json.loads((target / MANIFEST_FILE).read_bytes())
    names = content.pop("files")
    del content["sha256"]
    content["version"] = str(version)
    if is_other:
        content.pop("golden", None)  # it computes otherwise, and is meant to
        _scale(target / WEIGHTS_FILE, "decoder.init.kernel", -1.0)
    files = {name: digest_file(target / name) for name in names}
    sealed = seal(Description.model_validate(content), files)
    (target / MANIFEST_FILE).write_bytes(sealed.to_bytes())
    return target


def _scale(weights: Path, name: str, factor: float) -> None:
    content = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    entry = json.loads(content[8:start])[name]
    kind = np.float16 if entry["dtype"] == "F16" else np.float32
    first, end = (start + at for at in entry["data_offsets"])
    values = np.frombuffer(content[first:end], kind).astype(np.float32) * factor
    content[first:end] = values.astype(kind).tobytes()
    weights.write_bytes(content)


def _damage(bundle: Path, dice: random.Random) -> None:
    """Flip a bit of one of a bundle's files, or cut it."""
    path = dice.choice(sorted(bundle.iterdir()))
    content = bytearray(path.read_bytes())
    if dice.random() < 0.5:
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    else:
        del content[dice.randrange(len(content)) :]
    path.write_bytes(content)


def swaps(setting: Setting) -> Verdict:
    """A hundred swaps, ten of them to damaged bundles: every answer from one whole version."""
    shelf, count = setting.scratch / "shelf", setting.count(100, least=10)
    shelf.mkdir()
    version_of(setting.bundle, shelf / "v0", 0, is_other=False)
    server = start(setting, "--model-dir", shelf, "--admin", "--watch-seconds", 0)
    try:
        seen, sizes, refused = asyncio.run(_trial(setting, server, shelf, count))
        assert server.stop() == 0
    finally:
        server.child.kill()
        server.child.wait()
    failures = {what: number for what, number in seen.items() if what.startswith("failed")}
    settled = max(1, len(sizes) // 5)
    first, last = max(sizes[:settled]), float(np.median(sizes[-settled:]))
    told = (
        f"{count} swaps, {refused} refused; {seen['right']} answers, {seen['wrong']} of no whole "
        f"version, {failures or 'none failed'}; {first:.0f} MiB after the first fifth, {last:.0f} "
        f"in the last ({last / first - 1:+.1%})"
    )
    holds = not failures and not seen["wrong"] and refused == count // 10
    holds = holds and last < 1.05 * first and seen["right"] > count
    return Verdict(holds, "0 failed, each answer of one version, memory within 5 %", told)


async def _trial(
    setting: Setting, server: Served, shelf: Path, count: int
) -> tuple[Counter[str], list[float], int]:
    dice, seen, sizes, refused = random.Random(5), Counter[str](), [], 0
    stop = asyncio.Event()
    async with AsyncClient(server.address, timeout_s=60) as client:
        texts = {False: await _said(client)}
        asking: list[asyncio.Task[None]] = []
        for number in range(1, count + 1):
            is_other = number % 2 == 1
            path = await asyncio.to_thread(
                version_of, setting.bundle, shelf / f".v{number}", number, is_other
            )
            is_damaged = number % 10 == 0
            if is_damaged:
                _damage(path, dice)
            path = path.rename(shelf / f"v{number}")
            took = await asyncio.to_thread(_load, server.address, path.name)
            refused += not took
            assert took is not is_damaged, f"v{number}: {'taken' if took else 'refused'}"
            shutil.rmtree(path)
            if number == 1:
                texts[True] = await _said(client)
                assert texts[True] != texts[False]
                asking = [
                    asyncio.create_task(_keep_asking(client, seed, texts, seen, stop))
                    for seed in range(4)
                ]
            sizes.append(server.mib())
        stop.set()
        await asyncio.gather(*asking)
    return seen, sizes, refused


async def _said(client: AsyncClient) -> tuple[str, ...]:
    answer = await client.generate(_DIALOG, **_ASK)
    return tuple(reply.text for reply in answer.responses)


async def _keep_asking(
    client: AsyncClient,
    seed: int,
    texts: dict[bool, tuple[str, ...]],
    seen: Counter[str],
    stop: asyncio.Event,
) -> None:
    """Ask and stream; what is said must be what the named version says."""
    dice = random.Random(seed)
    while not stop.is_set():
        try:
            if dice.random() < 0.2:
                said = {at: reply.text async for at, reply in client.stream(_DIALOG, **_ASK)}
                right = tuple(said[at] for at in sorted(said)) in texts.values()
            else:
                answer = await client.generate(_DIALOG, **_ASK)
                is_other = int(answer.model.rsplit("@", 1)[1]) % 2 == 1
                right = tuple(reply.text for reply in answer.responses) == texts[is_other]
            seen["right" if right else "wrong"] += 1
        except ClientError as error:
            seen[f"failed {error.code.name}: {error}"[:160]] += 1


def _load(address: str, name: str) -> bool:
    with Client(address, 60) as client:
        try:
            client.load_model(name)
        except ClientError as error:
            assert "refused" in str(error), error
            return False
    return True
