"""Draw the rows to hold out of training.

Each speaker gives its share of the rows. Rows that would tell one side about the other are drawn together: rows with
the same words or the same recording, and a row whose recording is a reference or an earlier turn of another row. A clip
that is only a reference may be used on both sides, because a reference is never supervised.

The draw depends on the seed, the recordings and the texts, but not on the order of the rows or the names of the files.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables
from higgs_trainer.errors import UserError
from higgs_trainer.manifest.text import identify_text

AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)", re.ASCII)
SPEAKERS_LISTED = 8
# The speakers with one clip each are drawn from as if they were one speaker. No speaker has this name.
ONE_CLIP_EACH = "\n"
UNNAMED = ""


@dataclass(frozen=True)
class HoldOut:
    """How much of the data to hold out, and the seed of the draw.

    Attributes:
        amount: a number of rows or, if ``is_percent``, a percentage of the accepted rows.
    """

    amount: float
    is_percent: bool
    seed: int = 0

    def count_rows(self, total: int) -> int:
        """Return how many of ``total`` rows to hold out.

        Raises:
            UserError: no row would be left to train on.
        """
        wanted = max(1, round(total * self.amount / 100)) if self.is_percent else int(self.amount)
        if wanted >= total:
            raise UserError(
                f"--held-out {self} would leave no row to train on: {total} rows are accepted. Hold out fewer."
            )
        return wanted

    def __str__(self) -> str:
        return f"{self.amount:g}{'%' if self.is_percent else ''}"


def parse_hold_out(amount: str | int, *, seed: int = 0) -> HoldOut:
    """Parse a percentage of the rows ("5%") or a number of rows ("50").

    Raises:
        UserError: it is neither, or it is not more than 0 and less than 100%.
    """
    found = AMOUNT.fullmatch(str(amount).strip())
    if found is not None:
        number, is_percent = float(found[1]), bool(found[2])
        if number > 0 and (number < 100 if is_percent else number.is_integer()):
            return HoldOut(number, is_percent, seed)
    raise UserError(
        f"--held-out is {amount}. Give a percentage of the rows, such as 5%, or a number of rows."
    )


@dataclass
class Group:
    """Rows that are drawn together.

    Attributes:
        numbers: their numbers.
        speakers: how many of them each speaker has.
        order: the place of the group in the draw. It depends on the seed.
    """

    numbers: list[int] = field(default_factory=list)
    speakers: Counter[str] = field(default_factory=Counter)
    order: int = 2**64


def draw_held_out(tables: CorpusTables, hold_out: HoldOut, *, is_paired: bool) -> int:
    """Draw the rows to hold out among the accepted rows, and mark them in the tables. Return how many were wanted.

    Args:
        is_paired: each row will get another recording of its speaker on the same side as its reference. A speaker then
            has at least two rows on a side, or none.

    Raises:
        UserError: no rows can be held out, because all of them belong together or too few would be left.
    """
    wanted = hold_out.count_rows(tables.count_accepted())
    groups = _group_rows(tables, hold_out.seed)
    chosen = _choose_groups(groups, wanted, hold_out.seed, least=2 if is_paired else 1)
    if not chosen:
        raise UserError(
            f"--held-out {hold_out}: no rows can be held out, because too many rows belong together. They have the "
            "same words or the same recording, or the recording of one is the reference of another. Prepare other "
            "sentences from a file of their own instead."
        )
    tables.mark_held_out(number for group in chosen for number in group.numbers)
    return wanted


def describe_held_out(tables: CorpusTables, wanted: int) -> list[str]:
    """Describe how many rows were held out, of which speakers, and why there are not as many as were wanted."""
    counts = tables.count_speakers()
    held, total = (sum(column) for column in zip(*counts.values(), strict=True))
    notes = [f"held out: {held} of {total} rows{_list_speakers(counts)}"]
    if wanted != held:
        notes.append(
            f"{held} rows were held out, not {wanted}, because rows with the same words or recording stay together "
            "and each speaker keeps rows to train on"
        )
    return notes


def _list_speakers(counts: Mapping[str | None, tuple[int, int]]) -> str:
    if len(counts) > SPEAKERS_LISTED:
        return f", from {sum(held > 0 for held, _ in counts.values())} of {len(counts)} speakers"
    if list(counts) == [None]:
        return ""
    return ": " + ", ".join(
        f"{held} of {total} of {speaker or 'rows without a speaker'}"
        for speaker, (held, total) in sorted(counts.items(), key=lambda item: item[0] or "")
    )


def _group_rows(tables: CorpusTables, seed: int) -> list[Group]:
    """Return the groups in the order of the draw."""
    numbers: list[int] = []
    speakers: list[str] = []
    texts: list[int] = []
    for number, utterance in tables.iterate_accepted():
        numbers.append(number)
        speakers.append(utterance.speaker or UNNAMED)
        texts.append(_hash(identify_text(utterance.text)))
    position_of = {number: position for position, number in enumerate(numbers)}
    orders = [2**64] * len(numbers)
    links = list(enumerate(texts))
    for number, place, content_hash in tables.iterate_target_contents():
        position = position_of[number]
        links.append((position, _hash(content_hash)))
        if place == 0:
            orders[position] = _hash(f"{seed}:{content_hash}:{texts[position]}")
    groups: dict[int, Group] = {}
    for position, label in enumerate(_find_components(links, len(numbers))):
        group = groups.setdefault(label, Group())
        group.numbers.append(numbers[position])
        group.speakers[speakers[position]] += 1
        group.order = min(group.order, orders[position])
    return sorted(groups.values(), key=lambda group: group.order)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _find_components(links: Sequence[tuple[int, int]], num_rows: int) -> list[int]:
    """Return a label for each row. Rows that are linked to one key, also through other rows, have the same label."""
    positions, keys = (np.array(column, dtype=np.uint64) for column in zip(*links, strict=True))
    _, nodes = np.unique(keys, return_inverse=True)
    size = num_rows + int(nodes.max()) + 1
    edges = coo_array(
        (np.ones(len(links), bool), (positions.astype(np.int64), num_rows + nodes)), shape=(size, size)
    )
    _, labels = connected_components(edges, directed=False)
    return labels[:num_rows].tolist()


def _choose_groups(groups: Sequence[Group], wanted: int, seed: int, *, least: int) -> list[Group]:
    """Choose groups with ``wanted`` rows together, so that each speaker gives its share.

    Args:
        groups: in the order of the draw.
        least: the number of rows that a speaker has at least on each side, if it has any on it.
    """
    pool = _pool_speakers(groups, least)
    counts = [Counter(_pool_counts(group.speakers, pool)) for group in groups]
    sizes = sum(counts, Counter[str]())
    most = {speaker: size - (0 if speaker == ONE_CLIP_EACH else least) for speaker, size in sizes.items()}
    quota = _share_out(wanted, sizes, most, seed, unit=least)
    held, chosen = Counter[str](), set[int]()
    # First each speaker's share. Then groups of other sizes, until there are enough rows.
    for limits in (quota, most):
        for index, group in enumerate(counts):
            fits = all(held[speaker] + count <= limits[speaker] for speaker, count in group.items())
            if index not in chosen and fits and held.total() + group.total() <= wanted:
                chosen.add(index)
                held += group
    few = {speaker for speaker, count in held.items() if count < least}
    chosen = {index for index in chosen if not few & set(counts[index])}
    if not chosen:
        return _choose_smallest(groups, sizes.total(), least)
    return [groups[index] for index in sorted(chosen)]


def _choose_smallest(groups: Sequence[Group], total: int, least: int) -> list[Group]:
    """Choose the smallest group, where every group is larger than the share of its speakers."""
    smallest = min(groups, key=lambda group: len(group.numbers))
    is_usable = len(smallest.numbers) <= total // 2 and min(smallest.speakers.values()) >= least
    return [smallest] if is_usable else []


def _pool_speakers(groups: Sequence[Group], least: int) -> set[str]:
    """Find the speakers who are in one group only, such as those with one clip. None if rows are paired."""
    if least > 1:
        return set()
    appearances = Counter(speaker for group in groups for speaker in group.speakers)
    return {speaker for speaker, count in appearances.items() if count == 1 and speaker != UNNAMED}


def _pool_counts(counts: Mapping[str, int], pool: set[str]) -> Counter[str]:
    pooled = Counter[str]()
    for speaker, count in counts.items():
        pooled[ONE_CLIP_EACH if speaker in pool else speaker] += count
    return pooled


def _share_out(
    wanted: int, sizes: Mapping[str, int], most: Mapping[str, int], seed: int, *, unit: int
) -> dict[str, int]:
    """Divide the wanted rows among the speakers in proportion to their sizes, in multiples of ``unit``.

    What rounding down leaves goes to the largest remainders. The seed decides between equal ones.
    """
    shares = {speaker: wanted * size / sum(sizes.values()) / unit for speaker, size in sizes.items()}
    quota = {speaker: min(int(share), max(0, most[speaker]) // unit) for speaker, share in shares.items()}
    remainders = sorted(
        shares, key=lambda speaker: (quota[speaker] - shares[speaker], _hash(f"{seed}:{speaker}"))
    )
    left = wanted // unit - sum(quota.values())
    for speaker in remainders:
        if left > 0 and (quota[speaker] + 1) * unit <= most[speaker]:
            quota[speaker] += 1
            left -= 1
    return {speaker: count * unit for speaker, count in quota.items()}
