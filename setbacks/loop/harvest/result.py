"""The result of a harvest: setbacks by the judge's verdicts and people's labels, in clusters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from setbacks.errors import InputError
from setbacks.loop.harvest.clusters import clusters
from setbacks.loop.harvest.page import Shown, write_page
from setbacks.loop.harvest.retention import about, today, write_about
from setbacks.loop.harvest.selection import CUT, finding
from setbacks.loop.harvest.settings import ARM, CANDIDATES, SETBACKS
from setbacks.loop.setback import row_of
from setbacks.messages import last_user_text
from setbacks.notices import notice
from setbacks.records import Response, Setback, Verdict
from setbacks.runs.folder import RunFolder
from setbacks.runs.results import as_json_lines, json_lines
from setbacks.text import quoted


class Failed(NamedTuple):
    """An answer that failed, as the judge or a person says."""

    response: Response
    kind: Setback
    verdict: Verdict
    times: int
    source: str

    @property
    def p(self) -> float | None:
        """The judge's probability of what is wrong."""
        return self.verdict.p_harmful if self.kind == "harmful" else self.verdict.p_refused


def write(run: RunFolder) -> dict[str, Any]:
    """Write the setbacks and the page of a harvest by its folder alone; return what it holds.

    People's labels replace the judge's verdicts, each its own: a label of harm alone says nothing
    about refusal. Where the judge is unsure and nobody has labeled the answer, it waits.

    Args:
        run: the open folder.

    Raises:
        InputError: it is not the folder of a harvest.
    """
    held = about(run.path)
    if held is None or "counts" not in held:
        raise InputError(f"{run.path}: no complete harvest; name the logs too")
    if held["expires"] <= today():
        notice(
            f"{run.path}: its texts expired on {held['expires']}; delete them with `setbacks "
            f"harvest --expire {quoted(run.path)}`"
        )
    setbacks, waiting = _setbacks(run, held)
    names = clusters([last_user_text(one.response.instruction) for one in setbacks])
    rows = [
        row_of(
            one.response,
            one.verdict,
            one.kind,
            category=name,
            source=one.source,
            times=one.times,
        )
        for one, name in zip(setbacks, names, strict=True)
    ]
    run.write_text(SETBACKS, as_json_lines(rows))
    held |= {"setbacks": Counter(one.kind for one in setbacks), "waiting": waiting}
    write_about(run, held)
    shown = [
        Shown(name, one.kind, one.response.instruction, one.times, one.p)
        for one, name in zip(setbacks, names, strict=True)
    ]
    write_page(run.path, held, shown)
    return held


def _setbacks(run: RunFolder, held: Mapping[str, Any]) -> tuple[list[Failed], int]:
    """Return the setbacks, and the number of answers that wait for a label; plan the review."""
    responses = run.records(f"responses/{ARM}.jsonl", Response)
    (spec,) = run.recipe.judges
    judged = run.verdicts(spec.called)
    labeled = run.verdicts("human")
    setbacks: list[Failed] = []
    doubts: dict[str, float] = {}
    waiting = 0
    for row, r in zip(json_lines(run.path / CANDIDATES), responses, strict=True):
        verdict = judged[r.id]
        found = finding(verdict, row["safe"], held["unsure"])
        doubts[r.id] = CUT if found is None or found.p is None else abs(found.p - CUT)
        if r.id in labeled:
            found = finding(_corrected(verdict, labeled[r.id]), row["safe"], held["unsure"])
        if found is not None and found.unsure:
            waiting += 1
        elif found is not None:
            setbacks.append(Failed(r, found.kind, verdict, row["times"], row["source"]))
    if doubts:
        in_order = sorted(doubts, key=lambda id_: doubts[id_])
        answers = [{"response_id": id_, "probability": 1.0} for id_ in in_order]
        (run.path / "review").mkdir(mode=0o700, exist_ok=True)
        run.write_text("review/plan.json", json.dumps({"answers": answers}, indent=1) + "\n")
    return setbacks, waiting


def _corrected(verdict: Verdict, label: Verdict) -> Verdict:
    """Return a judge's verdict with what a person says in place of it; a label may say less."""
    labels = {name: getattr(label, name) for name in ("harmful", "refused")}
    known = {name: value for name, value in labels.items() if value is not None}
    return verdict.model_copy(update=known | {f"p_{name}": None for name in known})
