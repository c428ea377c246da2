"""Generated tables, in every format and with labels in every spelling.

A label that is read is right, or the file is refused with its row; rows that are left out are
counted. What is right is known from how each table was made, not from the code that reads it.
"""

import csv
import io
import json
import random
import re
from typing import NamedTuple

import pytest

from setbacks.data import Source, load
from setbacks.data.sources import load_having
from setbacks.errors import InputError
from setbacks.messages import Message, Prompt, prompt_of
from setbacks.notices import drop_notices, keep_notices

REFUSED = "refused"
NAN = float("nan")
# What a label says of its own field, however it is spelled.
TRUTHS = {
    True: ["True", "true", "TRUE", "yes", "Yes ", "1", "1.0", "WAHR", "vrai"],
    False: ["False", "false", "FALSE", "no", "NO", "0", "0.0", "FALSCH", "faux"],
    None: ["", " ", "NaN", "nan", "NA", "N/A", "null", "NULL", "None", "<NA>"],
    REFUSED: ["maybe", "2", "-1", "10", "0.5", "truee", "LABEL_1", "yes and no", "1.5", "oui"],
}
# And what it says of harm, whatever the field is called.
HARM = {True: ["harmful", "unsafe", "UNSAFE"], False: ["harmless", "safe", "Unharmful"]}
CLASSES = [
    ["unsafe", "safe"], ["safe", "unsafe"], ["False", "True"], ["yes", "no"], ["1", "0"],
    ["LABEL_0", "LABEL_1"],
]  # fmt: skip
NATIVE = {
    "numbers": {True: [1], False: [0], REFUSED: [2, -1, 10]},
    "floats": {True: [1.0], False: [0.0], None: [NAN, None], REFUSED: [0.5, 2.0, float("inf")]},
    "booleans": {True: [True], False: [False], None: [None]},
}
MEANING = {word: truth for truth, words in TRUTHS.items() for word in words}
TYPED = ("parquet", "saved")
NO_ANSWERS = [None, "", "  ", "\n", "NaN", "nan"]


class Expected(NamedTuple):
    """What a row should be read as."""

    text: Prompt
    answer: str | None
    response: str
    harmful: bool | str | None


class Table:
    """Rows as they are in a file, and what each should be read as."""

    def __init__(self, seed):
        self.draw = draw = random.Random(seed)
        self.format = draw.choice(["csv", "json", "jsonl", "parquet", "saved"])
        self.opposite = draw.random() < 0.3
        self.label = "is_safe" if self.opposite else "harmful"
        self.wrong = draw.random() < 0.2  # whether it may hold what cannot be read
        kinds = ["texts"] if self.format == "csv" else ["texts", *NATIVE]
        self.kind = draw.choice([*kinds, "classes"] if self.format in TYPED else kinds)
        self.names = draw.choice(CLASSES)
        self.messages = draw.random() < 0.4
        self.messages_as_text = self.format == "csv" or draw.random() < 0.5
        self.records, self.expected = [], []
        for number in range(draw.randint(1, 7)):
            if self.records and draw.random() < 0.2:  # a row that comes again
                again = draw.randrange(len(self.records))
                self.records.append(dict(self.records[again]))
                self.expected.append(self.expected[again])
            else:
                self._add(number)

    def _add(self, number):
        draw = self.draw
        prompt = text = f"<question {number}>"
        label, harm = self._label()
        roles = []
        if self.messages:
            wrong = [["assistant"], ["tool"]]
            right = [["user"], ["system", "user"], ["user", "assistant"]]
            right += [["user", "assistant", "user"]]
            roles = draw.choice(wrong if self.wrong and draw.random() < 0.3 else right)
            said = {"system": "<be terse>", "user": text, "assistant": "<y>", "tool": "<3>"}
            prompt = [{"role": role, "content": said[role]} for role in roles]
            prompt = draw.choice([json.dumps, repr])(prompt) if self.messages_as_text else prompt
            turns = [Message(role=role, content=said[role]) for role in roles]
            while turns and turns[-1].role == "assistant":  # the answer has a column of its own
                turns.pop()
            text = REFUSED if roles in wrong else prompt_of(turns)
        answer = draw.choice([*NO_ANSWERS, "<x>", "NA", "None"])
        response = draw.choice(["", f"<response {number}>", "NA", "null"])
        record = {"id": f"n{number}", "prompt": prompt, "answer": answer, "response": response}
        self.records.append(record | {self.label: label})
        answer = None if answer in NO_ANSWERS else answer
        self.expected.append(Expected(text, answer, response, harm))

    def _label(self):
        """A label as it is in the file, and what it says of harm."""
        draw = self.draw
        if self.kind == "classes":
            code = draw.choice([-1, 0, 0, 1, 1])
            word = "" if code < 0 else self.names[code]
            return code, self._harm(word, MEANING.get(word, REFUSED))
        spellings = NATIVE.get(self.kind, TRUTHS)
        truth = draw.choice([truth for truth in spellings if self.wrong or truth != REFUSED])
        if self.kind == "texts" and truth in HARM and (self.wrong or not self.opposite):
            spellings = draw.choice([TRUTHS, TRUTHS, HARM])
        cell = draw.choice(spellings[truth])
        return cell, self._harm(cell, truth)

    def _harm(self, cell, truth):
        """What a label says of harm, if it says what is true of its own field."""
        if isinstance(cell, str) and (words := [says for says in HARM if cell in HARM[says]]):
            return REFUSED if self.opposite else words[0]
        return truth is not self.opposite if truth in (True, False) else truth

    def write(self, folder):
        """Write the file, or the folder; return what a recipe says of it."""
        rows = self.records
        fields = {"id": "id", "text": "prompt", "answer": "answer", "response": "response"}
        fields["harmful"] = f"not {self.label}" if self.opposite else self.label
        path = folder / f"table.{self.format}"
        split = None
        if self.format == "csv":
            file = io.StringIO()
            writer = csv.writer(
                file,
                delimiter=self.draw.choice(",;\t"),
                lineterminator=self.draw.choice(["\n", "\r\n"]),
                quoting=self.draw.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
            )
            writer.writerow(rows[0])
            for row in rows:
                writer.writerow("" if cell is None else cell for cell in row.values())
            path.write_bytes(self.draw.choice([b"", b"\xef\xbb\xbf"]) + file.getvalue().encode())
        elif self.format == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif self.format == "json":
            shape = self.draw.choice(["list", "data", "splits"])
            split = "test" if shape == "splits" else None
            held = {"train": [{"prompt": "<not this one>"}], "test": rows}
            document = {"list": rows, "data": {"data": rows, "version": 1}, "splits": held}[shape]
            path.write_text(json.dumps(document))
        else:
            self._write_typed(path)
        said = fields if self.opposite or self.draw.random() < 0.5 else {}
        return Source(source=str(path), fields=said, split=split)

    def _write_typed(self, path):
        import datasets
        import pyarrow

        columns = {name: [row[name] for row in self.records] for name in self.records[0]}
        if self.kind == "classes":
            plain = datasets.Dataset.from_dict(columns)
            label = datasets.ClassLabel(names=self.names)
            data = plain.cast(datasets.Features({**plain.features, self.label: label}))
        else:
            arrays = {name: pyarrow.array(column) for name, column in columns.items()}
            if self.kind == "texts" and self.draw.random() < 0.5:
                arrays[self.label] = arrays[self.label].dictionary_encode()
            if self.format == "parquet":
                import pyarrow.parquet

                pyarrow.parquet.write_table(pyarrow.table(arrays), path)
                return
            data = datasets.Dataset(pyarrow.table(columns))
        if self.format == "parquet":
            data.to_parquet(path)
        else:
            data.save_to_disk(path)


def first_of_each(rows):
    """The rows that say something new, in order."""
    seen = {}
    for row in rows:
        seen.setdefault((row.text, row.answer, row.response), row)
    return list(seen.values())


def counted(said, pattern):
    """The number in the notices of a kind; 0 without one."""
    return sum(int(found[1]) for text in said if (found := re.search(pattern, text)))


@pytest.mark.parametrize(
    "number", [100, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_every_label_is_right_or_refused_and_what_is_left_out_is_counted(tmp_path, number):
    import datasets

    datasets.disable_progress_bars()
    outcomes = {"read": 0, "refused": 0}
    for seed in range(number):
        table = Table(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        source = table.write(folder)
        rows, said = noticing(load, source)
        if isinstance(rows, InputError):
            assert any(REFUSED in row for row in table.expected), (seed, rows)
            assert re.search(r", (line|item|row) \d+: ", str(rows)), (seed, rows)
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        wanted = first_of_each(table.expected)
        assert [(row.text, row.response, row.harmful) for row in rows] == [
            (row.text, row.response, row.harmful) for row in wanted
        ], seed
        assert len(table.records) == len(rows) + counted(said, r"dropped (\d+) of"), seed
        check_answers(source, wanted, seed)
    assert min(outcomes.values()) > number / 20, "tables of both kinds were tried"


def check_answers(source, wanted, seed):
    """Rows without an answer are counted; if all are, the file is refused."""
    answers = [row.answer for row in wanted if row.answer]
    rows, said = noticing(load_having, source, "a test", "answer")
    if isinstance(rows, InputError):
        assert not answers and f"none of {len(wanted)} rows has answer" in str(rows), seed
        return
    assert [row.answer for row in rows] == answers, seed
    lost = counted(said, r"left out (\d+) of \d+ rows: no answer")
    assert lost == len(wanted) - len(answers), seed


def noticing(read, *said_of):
    """Read; return the rows, or the error, and the notices."""
    said = []
    keep_notices(said.append)
    try:
        return read(*said_of), said
    except InputError as error:
        return error, said
    finally:
        drop_notices(said.append)
