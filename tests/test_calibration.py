import csv
import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from setbacks import calibration
from setbacks.cli.arguments import judge_recipe
from setbacks.errors import InputError, SetbacksError
from setbacks.judges import judge_class
from setbacks.judges.worth import folder, worth
from setbacks.plugins import installed
from setbacks.recipe import Recipe

# Another package's judge, found through its entry point: it reads its probability off the response,
# but knows no German.
JUDGE = """
import os
import time

from setbacks.judges import Judge, Opinion


class Reader(Judge):
    needs_engine = True

    def plan(self, items):
        # The last first, so that verdicts do not come in the order of the labels.
        return [[n] for n in reversed(range(len(items)))]

    def judge(self, items):
        time.sleep(float(os.environ.get("SLOW", 0)))
        made = []
        for item in items:
            p = float(item.response.split()[-1])
            made.append(
                Opinion(harmful=p >= 0.5, p_harmful=p, refused=item.response.startswith("no"))
                if (p >= 0 or p < -1) and item.language != "de" else Opinion()
            )
        return made
"""


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The judge above, installed; returns the folder to put on the path."""
    place = tmp_path / "reader"
    info = place / "reader_for_setbacks-1.0.dist-info"
    info.mkdir(parents=True)
    (place / "reader_for_setbacks.py").write_text(JUDGE)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: reader_for_setbacks\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text("[setbacks.judges]\nreader=reader_for_setbacks:Reader\n")
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("SETBACKS_DATA", str(tmp_path / "data"))
    installed.cache_clear()
    yield place
    installed.cache_clear()


def rows(n: int = 80, **more) -> list[dict]:
    """Labeled answers of two sources; the judge is right on four of five harmful ones."""
    made = []
    for i in range(n):
        harmful = i % 2 == 0
        p = (0.9 if i % 10 else 0.3) if harmful else (0.1 if i % 7 else 0.6)
        made.append(
            {
                "instruction": f"<question {i // 2}>",
                "response": f"{'yes' if harmful else 'no'} <answer {i}> {p}",
                "harmful": harmful,
                "refused": not harmful,
                "category": ("fraud", "theft")[i % 4 // 2],
                "source": ("one", "two")[i // 40 % 2],
            }
            | more
        )
    return made


def write(path, made) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def everything(path):
    return sorted(file.relative_to(path) for file in path.rglob("*"))


# -- where it is kept -------------------------------------------------------------------------


def test_what_an_earlier_version_measured_is_found():
    recipe = Recipe.model_validate(
        {
            "language": "zh",
            "judges": [
                {"judge": "llm", "engine": "x", "retries": 4, "pairwise": True},
                {"judge": "llama-guard", "engine": "y"},
                "refusal",
                {"judge": "vote", "of": ["refusal"]},
            ],
        }
    )
    assert [folder(spec, recipe).name for spec in recipe.judges] == [
        "llm-a79a0b067804b110",
        "llama-guard-5adffe8ffbd8d21c",
        "refusal-63461277cbfffa92",
        "vote-583da202ca7d6b55",
    ]


def test_a_data_folder_that_cannot_be_written_is_told_before_any_work(
    tmp_path, reader, states, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SETBACKS_DATA", str(tmp_path / "file"))
    found = calibration.labels(write(tmp_path / "labels.jsonl", rows()))
    with pytest.raises(InputError, match="cannot be written .*; set SETBACKS_DATA"):
        calibration.calibrate(judge_recipe("reader"), found)
    with pytest.raises(InputError, match="cannot be written .*; set SETBACKS_DATA"):
        calibration.fit(found)
    assert not states, "nothing was read"
    monkeypatch.setenv("SETBACKS_DATA", str(tmp_path / "data"))
    with pytest.raises(InputError, match="cannot be written .*; name another folder with --out"):
        calibration.fit(found, tmp_path / "file" / "heads")


def test_without_a_home_folder_nothing_was_calibrated(reader, no_home, monkeypatch, tmp_path):
    monkeypatch.delenv("SETBACKS_DATA")
    recipe = judge_recipe("reader")
    assert worth(recipe.judges[0], recipe) == []
    found = calibration.labels(write(tmp_path / "labels.jsonl", rows()))
    with pytest.raises(InputError, match="set HOME, or set SETBACKS_DATA"):
        calibration.calibrate(recipe, found)


# -- measuring --------------------------------------------------------------------------------


def test_figures_are_those_of_the_labels_whatever_order_verdicts_come_in(tmp_path, reader):
    found = calibration.labels(write(tmp_path / "labels.jsonl", rows()))
    made = calibration.calibrate(judge_recipe("reader"), found)
    harmful, refused = made.result["overall"]
    # By hand: of 40 harmful answers 8 have i % 10 == 0; of 40 others 6 have i % 7 == 0.
    assert harmful["sensitivity"][0] == pytest.approx(32 / 40)
    assert harmful["specificity"][0] == pytest.approx(34 / 40)
    assert harmful["kappa"][0] == pytest.approx(0.65)
    assert (harmful["n"], harmful["n_positive"], harmful["n_questions"]) == (80, 40, 40)
    assert refused["auc"][0] == refused["kappa"][0] == 1
    assert refused["ece"] is None  # it gave no probability of refusal
    assert [(r["source"], r["task"]) for r in made.result["sources"]] == [
        ("one", "harmful"),
        ("one", "refused"),
        ("two", "harmful"),
        ("two", "refused"),
    ]
    assert {r["source"] for r in made.result["categories"]} == {"fraud", "theft"}


def test_the_reliability_diagram_is_drawn(tmp_path, reader):
    from matplotlib.image import imread

    found = calibration.labels(write(tmp_path / "labels.jsonl", rows()))
    files = calibration.calibrate(judge_recipe("reader"), found).files
    svg = files["reliability diagram"].read_text()
    assert "share that people call harmful" in svg and "harmful, 80 answers" in svg
    assert imread(files["the same as PNG"]).shape[1] > 1000


def test_reports_find_the_figures_of_this_very_judge(tmp_path, reader):
    recipe = judge_recipe("reader")
    found = calibration.labels(write(tmp_path / "labels.jsonl", rows()))
    assert worth(recipe.judges[0], recipe) == []
    calibration.calibrate(recipe, found)
    measured = worth(recipe.judges[0], recipe)
    assert [row["source"] for row in measured] == ["one", "one", "two", "two"]
    assert all(row["own"] for row in measured)
    named = recipe.judges[0].model_copy(update={"name": "another_name"})
    assert worth(named, recipe) == measured
    # Another model behind it makes another judge.
    other = judge_recipe("reader", [f"engine.model={tmp_path}"])
    assert worth(other.judges[0], other) == []


def test_figures_of_other_weights_at_the_same_path_are_not_used(
    tmp_path, reader, fake_engine, fake_model, notices
):
    model = fake_model("talker")
    recipe = judge_recipe("reader", [f"engine={json.dumps(model)}"])
    labels = calibration.labels(write(tmp_path / "labels.jsonl", rows()))
    calibration.calibrate(recipe, labels)
    measured = worth(recipe.judges[0], recipe)
    assert measured and not notices
    config = tmp_path / "models" / "talker" / "config.json"
    config.write_text('{"other": 1}')
    assert worth(recipe.judges[0], recipe) == []
    assert [line.partition(";")[0] for line in notices] == [
        "reader: its weights have changed since it was calibrated on labels.jsonl, and these "
        "figures are not used"
    ]
    calibration.calibrate(recipe, labels)
    assert worth(recipe.judges[0], recipe) == measured and len(notices) == 1
    shutil.rmtree(tmp_path / "models")
    assert worth(recipe.judges[0], recipe), "a model that is gone is not another one"


def test_labels_that_grew_take_the_place_of_the_old_ones(tmp_path, reader):
    recipe, file = judge_recipe("reader"), tmp_path / "labels.jsonl"
    for n in (40, 80):
        calibration.calibrate(recipe, calibration.labels(write(file, rows(n, source="one"))))
    assert [row["n"] for row in worth(recipe.judges[0], recipe)] == [80, 80]
    other = write(tmp_path / "other.jsonl", rows(40, source="other"))
    calibration.calibrate(recipe, calibration.labels(other))
    assert len(worth(recipe.judges[0], recipe)) == 4


def test_answers_are_judged_again_if_their_language_is_corrected(tmp_path, reader):
    recipe, file = judge_recipe("reader"), tmp_path / "labels.jsonl"
    with pytest.raises(InputError, match="no usable verdicts"):
        calibration.calibrate(recipe, calibration.labels(write(file, rows(language="de"))))
    corrected = calibration.labels(write(file, rows(language="en")))
    assert calibration.calibrate(recipe, corrected).result["overall"][0]["n"] == 80


def test_few_labels_are_said_to_count_together_with_what_ships(
    tmp_path, reader, monkeypatch, caplog
):
    recipe = judge_recipe("reader")
    few = calibration.labels(write(tmp_path / "few.jsonl", rows(40)))
    calibration.calibrate(recipe, few)
    assert not caplog.records, "nothing ships with this judge"
    shipped = [{"source": "s", "task": "harmful", "n": 400}]
    monkeypatch.setattr(judge_class(recipe.judges[0]), "agreement", lambda spec: shipped)
    calibration.calibrate(recipe, few)
    (record,) = caplog.records
    assert "few.jsonl: harmful is true on 20 answers and false on 20" in record.getMessage()
    assert "by yours alone from 50 of each on" in record.getMessage()
    caplog.clear()
    calibration.calibrate(recipe, calibration.labels(write(tmp_path / "many.jsonl", rows(100))))
    assert not caplog.records


def test_unscored_answers_are_counted_and_left_out(tmp_path, reader):
    made = rows()
    made[3]["response"] = "no <answer> -1"
    made[4]["response"] = "yes <answer> -1"
    found = calibration.labels(write(tmp_path / "labels.jsonl", made))
    harmful = calibration.calibrate(judge_recipe("reader"), found).result["overall"][0]
    assert (harmful["n"], harmful["unscored"]) == (78, 2)


def test_labels_of_empty_answers_are_counted_and_not_judged(tmp_path, reader):
    made = rows()
    made[3]["response"], made[4]["response"] = "", "<think>no"
    found = calibration.labels(write(tmp_path / "labels.jsonl", made))
    harmful = calibration.calibrate(judge_recipe("reader"), found).result["overall"][0]
    assert (harmful["n"], harmful["unscored"]) == (78, 2)


def test_a_source_with_labels_of_one_kind_has_counts_alone(tmp_path, reader):
    made = [row | {"source": "harmless" if not row["harmful"] else "harmful"} for row in rows()]
    found = calibration.labels(write(tmp_path / "labels.jsonl", made))
    result = calibration.calibrate(judge_recipe("reader"), found).result
    assert result["overall"][0]["auc"] is not None
    assert {(row["n"], row["auc"]) for row in result["sources"]} == {(40, None)}


def test_a_vote_is_measured_with_the_judges_it_counts(tmp_path, reader):
    made = rows()
    for row in made:
        row["response"] = row["response"].replace("no ", "no, I cannot help with that. ")
    made[1]["response"] = made[1]["response"].replace("no, ", "")  # to the reader no refusal
    found = calibration.labels(write(tmp_path / "labels.jsonl", made))
    recipe = judge_recipe("vote", ["of=[reader,refusal]", f"reader.engine.model={tmp_path}"])
    harmful, refused = calibration.calibrate(recipe, found).result["overall"]
    assert harmful["sensitivity"][0] == pytest.approx(32 / 40)  # the phrases say nothing of it
    assert (refused["n"], refused["unscored"], refused["kappa"][0]) == (79, 1, 1)  # a tie is none
    assert len(worth(recipe.judges[-1], recipe)) == 4
    # The same names with another model behind one make another vote.
    other = judge_recipe("vote", ["of=[reader,refusal]"])
    assert worth(other.judges[-1], other) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["of=probe"], "judges.0.of"),
        (["of=[probe,probe]"], "duplicate name"),
        (["of=[probe,llm]", "lmm.retries=1"], 'unknown key "judges.2.lmm"'),
        (["of=[probe,llm]", "llm=3"], 'unknown key "judges.2.llm"'),
    ],
)
def test_a_vote_that_cannot_be_is_refused(words, said):
    with pytest.raises(InputError) as error:
        judge_recipe("vote", words)
    assert said in str(error.value)


def test_a_probability_out_of_range_is_an_error(tmp_path, reader):
    made = rows()
    made[5]["response"] = "no <answer> 1.7"
    found = calibration.labels(write(tmp_path / "labels.jsonl", made))
    recipe = judge_recipe("reader")
    with pytest.raises(SetbacksError, match=r"probability of 1\.7; it must be in \[0, 1\]"):
        calibration.calibrate(recipe, found)
    assert worth(recipe.judges[0], recipe) == []


# -- label files ------------------------------------------------------------------------------


def test_labels_of_another_shape_are_read_by_fields(tmp_path):
    file = tmp_path / "theirs.csv"
    with file.open("w", newline="") as out:
        lines = csv.writer(out)
        lines.writerow(["prompt", "completion", "is_safe"])
        lines.writerows([[f"<q {i}>", f"<a {i}>", i % 2] for i in range(4)])
    fields = {"text": "prompt", "response": "completion", "harmful": "not is_safe"}
    found = calibration.labels(str(file), fields)
    assert [row.harmful for row in found.rows] == [True, False, True, False]


def test_labels_of_conversations_are_measured_as_those_of_questions(tmp_path, reader):
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<q>"}]
    before.append({"role": "assistant", "content": "<a>"})
    talks = [
        row | {"instruction": [*before, {"role": "user", "content": row["instruction"]}]}
        for row in rows()
    ]
    figures = []
    for made in (rows(), talks):
        found = calibration.labels(write(tmp_path / "labels.jsonl", made))
        result = calibration.calibrate(judge_recipe("reader"), found).result
        keys = ("n", "n_positive", "n_questions", "sensitivity", "specificity")
        figures.append([[row[key] for key in keys] for row in result["overall"]])
    assert [turn.role for turn in found.rows[0].text] == ["system", "user", "assistant", "user"]
    assert [[row[:3], row[3][0]] for row in figures[0]] == [[r[:3], r[3][0]] for r in figures[1]]


def test_yaml_names_several_sources_from_its_own_folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "a.jsonl", rows(4))
    write(tmp_path / "sub" / "b.jsonl", [{"q": "<q>", "a": "<a>", "label": "2_full_refusal"}])
    (tmp_path / "sub" / "labels.yaml").write_text(
        "- a.jsonl\n- source: b.jsonl\n  fields: {text: q, response: a, refused: label}\n"
    )
    found = calibration.labels(str(tmp_path / "sub" / "labels.yaml"))
    assert len(found.rows) == 5
    assert (found.rows[4].harmful, found.rows[4].refused) == (None, True)


@pytest.mark.parametrize("text", ["", "[]\n"])
def test_yaml_that_names_nothing_is_refused(tmp_path, text):
    (tmp_path / "labels.yaml").write_text(text)
    with pytest.raises(InputError, match="labels.yaml: has no source"):
        calibration.labels(str(tmp_path / "labels.yaml"))


def test_two_files_that_contradict_each_other_are_refused(tmp_path):
    write(tmp_path / "a.jsonl", rows(8, source="a"))
    write(
        tmp_path / "b.jsonl", [row | {"harmful": not row["harmful"]} for row in rows(8, source="b")]
    )
    (tmp_path / "labels.yaml").write_text("[a.jsonl, b.jsonl]\n")
    with pytest.raises(InputError, match="b and a contradict each other"):
        calibration.labels(str(tmp_path / "labels.yaml"))


def test_labels_of_a_task_that_are_all_the_same_are_left_out(tmp_path, caplog):
    """People often find no refusal; their labels of harm still measure a judge."""
    answers = [row | {"refused": False} for row in rows()]
    answers[0]["harmful"] = None  # nothing of this row is usable
    labeled = calibration.labels(write(tmp_path / "labels.jsonl", answers))
    assert len(labeled.rows) == len(answers) - 1
    assert {row.refused for row in labeled.rows} == {None}
    assert {row.harmful for row in labeled.rows} == {True, False}
    assert "labels.jsonl: all 80 labels of refused are false, and are left out" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda made: [], "is empty"),
        (
            lambda made: [row | {"harmful": True, "refused": None} for row in made],
            "80 labels of harmful are true",
        ),
        (
            lambda made: [*made, made[0] | {"harmful": False}],
            'two labels of one answer to "<question 0>" contradict each other',
        ),
        (
            lambda made: [*made, made[0] | {"response": "x", "harmful": 3}],
            "must be true or false",
        ),
        (
            lambda made: [{"instruction": "<q>", "response": "<a>"}],
            "neither a harmful nor",
        ),
        (lambda made: [{"instruction": "<q>", "harmful": True}], "no known field for response"),
        (
            lambda made: [{"id": "nobody", "response_id": "nobody", "harmful": True}],
            "has response_id but no texts of the answers",
        ),
    ],
)
def test_bad_labels_are_one_clear_error_and_change_nothing(tmp_path, reader, change, said):
    file = write(tmp_path / "labels.jsonl", change(rows()))
    with pytest.raises(InputError, match=said) as error:
        calibration.labels(file)
    assert "labels.jsonl" in str(error.value)
    assert not (tmp_path / "data").exists()


# -- the command ------------------------------------------------------------------------------


def test_the_command_prints_figures_and_files(tmp_path, reader, cli_in_process):
    write(tmp_path / "labels.jsonl", rows())
    done = cli_in_process("calibrate", "reader", "--labels", "labels.jsonl", "-q")
    assert done.returncode == 0, done.stderr
    assert "0.80" in done.stdout and "reliability.svg" in done.stdout
    data = json.loads(
        cli_in_process("calibrate", "reader", "--labels", "labels.jsonl", "--json").stdout
    )
    assert data["overall"][0]["sensitivity"][0] == 0.8
    assert os.path.exists(data["files"]["reliability diagram"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("reader", "either --labels FILE"),
        ("reader --labels missing.jsonl", "missing.jsonl"),
        ("nobody --labels labels.jsonl", 'unknown judge "nobody"'),
        ("reader heads=x --labels labels.jsonl", "an option of probe, not of reader"),
        ("probe heads=x.safetensors --labels labels.jsonl", "x.safetensors: file not found"),
        ("reader nonsense=1 --labels labels.jsonl", "nonsense"),
        ("reader --fit labels.jsonl", "--fit is only for the probe"),
    ],
)
def test_bad_words_exit_with_2_and_change_nothing(tmp_path, reader, cli_in_process, words, said):
    write(tmp_path / "labels.jsonl", rows())
    done = cli_in_process("calibrate", *words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_bad_labels_leave_earlier_figures_as_they_were(tmp_path, reader, cli, environment):
    environment["PYTHONPATH"] = str(reader)
    write(tmp_path / "labels.jsonl", rows())
    assert cli("calibrate", "reader", "--labels", "labels.jsonl").returncode == 0

    def there():
        return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    good = rows()
    for made, said in [
        ([{"response_id": "nobody", "harmful": True}], "has response_id but no texts"),
        ([{"id": "nobody", "harmful": True}], "no known field for text;"),
        (
            [row | {"harmful": False, "refused": None} for row in good],
            "all 80 labels of harmful are false",
        ),
        ([*good, good[0] | {"refused": True}], "contradict each other; keep one"),
        ([], "labels.jsonl is empty"),
    ]:
        write(tmp_path / "labels.jsonl", made)
        before = there()
        for words in (["reader", "--labels"], ["probe", "--out", "heads", "--fit"]):
            done = cli("calibrate", *words, "labels.jsonl")
            assert (done.returncode, done.stdout) == (2, "")
            assert said in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert there() == before


@pytest.mark.slow
def test_a_killed_calibration_goes_on_where_it_was(tmp_path, reader, command, environment, cli):
    environment["PYTHONPATH"] = str(reader)
    write(tmp_path / "labels.jsonl", rows())
    words = [*command, "calibrate", "reader", "--labels", "labels.jsonl", "-q", "--json"]
    slow = environment | {"SLOW": "0.1"}
    process = subprocess.Popen(words, cwd=tmp_path, env=slow, stdout=subprocess.PIPE)
    recipe = judge_recipe("reader")
    deadline = time.monotonic() + 60
    while not (found := [*folder(recipe.judges[0], recipe).glob("*/verdicts/*.jsonl")]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = found[0].read_bytes()
    assert 0 < before.count(b"\n") < 80
    assert worth(recipe.judges[0], recipe) == []
    done = cli("calibrate", "reader", "--labels", "labels.jsonl", "--json")
    assert json.loads(done.stdout)["overall"][0]["n"] == 80
    assert found[0].read_bytes().startswith(before[: before.rindex(b"\n") + 1])


# -- another tool's verdicts --------------------------------------------------------------------


def test_verdicts_of_another_tool_are_measured(tmp_path, cli_in_process):
    write(tmp_path / "labels.jsonl", rows())
    theirs = [
        {"q": row["instruction"], "a": row["response"], "flag": None, "p_safe": 1 - score}
        for row in rows()[:-2]
        for score in [float(row["response"].split()[-1])]
    ]
    theirs[0]["flag"] = "safe"  # a verdict counts for more than its probability
    write(tmp_path / "theirs.jsonl", theirs)
    (tmp_path / "theirs.yaml").write_text(
        "source: theirs.jsonl\n"
        "fields: {text: q, response: a, harmful: flag, p_harmful: not p_safe}\n"
    )
    words = ("calibrate", "--verdicts", "theirs.yaml", "--labels", "labels.jsonl", "--json")
    done = cli_in_process(*words, "--out", "figures")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    (harmful,) = data["overall"]  # it says nothing of refusals
    assert (harmful["n"], harmful["unscored"]) == (78, 2)
    # As the judge above, but without the last answer of each kind.
    assert harmful["sensitivity"][0] == pytest.approx(31 / 39, abs=1e-3)
    assert harmful["specificity"][0] == pytest.approx(33 / 39, abs=1e-3)
    assert harmful["ece"] is not None
    assert "harmful, 78 answers" in (tmp_path / "figures" / "reliability.svg").read_text()
    before = everything(tmp_path)
    assert json.loads(cli_in_process(*words).stdout)["overall"] == [harmful]
    assert everything(tmp_path) == before, "without --out, nothing is written"


@pytest.mark.parametrize(
    ("words", "theirs", "said"),
    [
        ("", {}, "has no verdicts: none of its 1 answers has harmful, refused, p_harmful"),
        ("", {"harmful": True}, "none of its 1 verdicts is on an answer of labels.jsonl"),
        ("", {"harmful": True} | rows()[0], "verdicts on 1 of 80 answers of labels.jsonl, but not"),
        ("", {"p_harmful": 1.5}, 'p_harmful is "1.5"; it must be a number from 0 to 1'),
        ("probe", {}, "--verdicts FILE needs --labels FILE, and no JUDGE"),
    ],
)
def test_verdicts_that_cannot_be_measured(tmp_path, cli_in_process, words, theirs, said):
    write(tmp_path / "labels.jsonl", rows())
    write(tmp_path / "theirs.jsonl", [{"instruction": "<q>", "response": "<a>"} | theirs])
    done = cli_in_process(
        "calibrate", *words.split(), "--verdicts", "theirs.jsonl", "--labels", "labels.jsonl"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_two_probabilities_of_one_answer_that_differ_are_refused(tmp_path, cli_in_process):
    write(tmp_path / "labels.jsonl", rows())
    two = [row | {"harmful": None, "refused": None} for row in rows()]
    for name, p in (("a", 0.9), ("b", 0.1)):
        write(tmp_path / f"{name}.jsonl", [row | {"p_harmful": p, "source": name} for row in two])
    (tmp_path / "both.jsonl").write_text(
        (tmp_path / "a.jsonl").read_text() + (tmp_path / "b.jsonl").read_text()
    )
    (tmp_path / "both.yaml").write_text("[{source: a.jsonl}, {source: b.jsonl}]")
    for file, text in (
        ("both.jsonl", 'two labels of one answer to "<question 0>" contradict each other'),
        ("both.yaml", "both.yaml: b and a contradict each other on answer"),
    ):
        done = cli_in_process("calibrate", "--verdicts", file, "--labels", "labels.jsonl")
        assert (done.returncode, done.stdout) == (2, "")
        assert text in done.stderr and done.stderr.count("\n") == 1


def test_the_table_fits_into_80_columns(tmp_path, cli_in_process):
    write(tmp_path / "labels.jsonl", rows())
    write(tmp_path / "theirs.jsonl", rows())
    words = ("--verdicts", "theirs.jsonl", "--labels", "labels.jsonl")
    lines = cli_in_process("calibrate", *words).stdout.splitlines()
    assert any(line.split() == ["harmful", *["1.00-1.00"] * 4] for line in lines)


def test_without_a_judge_or_verdicts_there_is_nothing_to_measure(cli_in_process):
    done = cli_in_process("calibrate", "--labels", "labels.jsonl")
    assert done.returncode == 2 and "name a JUDGE" in done.stderr


# -- the probe on one's own labels --------------------------------------------------------------


@pytest.fixture
def states(monkeypatch):
    """Stand in for the embedded model's hidden states: five numbers, two of which tell.

    The test with the model itself is below.
    """
    import numpy as np

    from setbacks.judges import probe

    reads = []

    def features(pairs):
        reads.extend(pairs)
        made = []
        for _, response in pairs:
            word, *_ = response.split()
            noise = np.random.default_rng(sum(map(ord, response))).normal(0, 1, 5)
            made.append(noise + [3 * (word == "yes"), 0, 0, 0, 3 * (word == "no")])
        return np.array(made, np.float32)

    heads = {task: probe.Head(np.zeros(5, np.float32), 0.0) for task in probe.TASKS}
    monkeypatch.setattr(probe, "features", features)
    monkeypatch.setattr(probe, "load", lambda file=None: dict(heads))
    return reads


def test_heads_are_fitted_and_measured_on_questions_they_never_saw(tmp_path, reader, states):
    from safetensors.numpy import load_file

    found = calibration.labels(write(tmp_path / "labels.jsonl", rows()))
    made = calibration.fit(found, tmp_path / "heads")
    assert [(r["source"], r["task"], r["fitted_on"]) for r in made.result["sources"]] == [
        ("one", "harmful", True),
        ("two", "harmful", True),
        ("one", "refused", True),
        ("two", "refused", True),
    ]
    assert all(row["auc"][0] > 0.9 for row in made.result["sources"])
    heads = load_file(made.files["heads"])
    assert abs(heads["harmful.weight"]).argmax() in (0, 4)
    assert not heads["helpful.weight"].any()  # no labels: the one that ships
    # Reports find what came out of the fit.
    recipe = judge_recipe("probe", [f"heads={made.files['heads']}"])
    assert worth(recipe.judges[0], recipe) == made.result["sources"]
    with pytest.raises(InputError, match="already exists"):
        calibration.fit(found, tmp_path / "heads")


def test_labels_without_a_signal_give_no_more_than_a_coin(tmp_path, reader, states):
    made = [row | {"harmful": i // 3 % 2 == 0, "refused": None} for i, row in enumerate(rows(240))]
    made = [row | {"response": f"maybe {row['response']}"} for row in made]
    found = calibration.labels(write(tmp_path / "labels.jsonl", made))
    for row in calibration.fit(found).result["sources"]:
        assert 0.3 < row["auc"][0] < 0.7


def test_a_stopped_fit_reads_no_answer_twice(tmp_path, reader, states, monkeypatch):
    from setbacks.judges import probe

    found = calibration.labels(write(tmp_path / "labels.jsonl", rows()))
    whole = probe.features

    def stopping(pairs):
        if len(states) >= 32:
            raise KeyboardInterrupt
        return whole(pairs)

    monkeypatch.setattr(probe, "features", stopping)
    with pytest.raises(KeyboardInterrupt):
        calibration.fit(found, tmp_path / "heads")
    assert not (tmp_path / "heads").exists()
    monkeypatch.setattr(probe, "features", whole)
    calibration.fit(found, tmp_path / "heads")
    assert len(states) == 80


def test_too_few_questions_fit_nothing(tmp_path, reader, states):
    found = calibration.labels(write(tmp_path / "labels.jsonl", rows(12)))
    with pytest.raises(InputError, match="on 6 questions; a head needs at least 10"):
        calibration.fit(found, tmp_path / "heads")
    assert not (tmp_path / "heads").exists() and not states


def test_heads_of_a_recipe_count_from_its_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "r.yaml").write_text("judges: [{judge: probe, heads: h.safetensors}]\n")
    recipe = Recipe.load(tmp_path / "sub" / "r.yaml")
    assert recipe.judges[0].heads == str(tmp_path / "sub" / "h.safetensors")


@pytest.mark.slow
def test_the_probe_itself_is_fitted_and_then_used(tmp_path, monkeypatch):
    from setbacks.judges import Item
    from setbacks.judges.probe import Probe

    monkeypatch.setenv("SETBACKS_DATA", str(tmp_path / "data"))
    made = [
        {
            "instruction": f"How do I bake a cake with {n} eggs?",
            "response": "I am sorry, I cannot help." if refused else f"Beat {n} eggs with sugar.",
            "refused": refused,
        }
        for n in range(2, 14)
        for refused in (True, False)
    ]
    fitted = calibration.fit(calibration.labels(write(tmp_path / "labels.jsonl", made)))
    assert fitted.result["sources"][0]["auc"][0] > 0.9
    judge = Probe(fitted.files["heads"])
    said = judge.judge(
        [
            Item("a", "How do I fry an egg?", "I am sorry, I cannot help you."),
            Item("b", "How do I fry an egg?", "Beat the eggs and fry them."),
        ]
    )
    assert [opinion.refused for opinion in said] == [True, False]
