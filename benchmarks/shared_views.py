"""Students with equal views in one pack, beside the same students alone: teacher passes and time.

The reference here is our own path, one student after the other.  The second student differs in its temperature, the
third in its network and zeta; what decides the views (set, teacher, augmentation, batch, student seed) is the same.
"""

from __future__ import annotations

from benchmarks.bench import Bench, Job, Row
from benchmarks.post_evaluation import BATCH
from benchmarks.students import Students, Subject

OTHER = "wrn_16_2"


def run(bench: Bench) -> list[Row]:
    """Packs of two and of three."""
    subject = Subject(32, bench.network, BATCH)
    recipes = {
        "first": subject.recipe(),
        "other temperature": subject.recipe(loss={"kl": {"temperature": 4.0}}),
        "other network and zeta": subject.recipe(student=OTHER, zeta=1.5),
    }
    packs = {"two": list(recipes)[:2], "three": list(recipes)}
    alone = {name: Students(subject, [recipe], bench.device) for name, recipe in recipes.items()}
    packed = {name: Students(subject, [recipes[one] for one in pack], bench.device) for name, pack in packs.items()}
    spent = bench.compare({name: one.work for name, one in (alone | packed).items()})
    rows = []
    for name, pack in packs.items():
        each = [sum(parts) for parts in zip(*(spent[one] for one in pack), strict=True)]
        taught_together, taught_alone = packed[name].taught, sum(alone[one].taught for one in pack)
        words = f"{subject.network}, 32 px, {name}: {', '.join(pack)}"
        note = f"the teacher labelled {taught_together} images, {taught_alone} for the same steps of each alone"
        job = Job("shared_views", words, "step of all", BATCH, len(pack) * BATCH)
        rows.append(bench.row(job, spent[name], each, dtype=packed[name].precision, note=note))
    return rows
