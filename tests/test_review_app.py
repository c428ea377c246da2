"""The review page as a browser or a script meets it, over HTTP: who gets in, and what is said."""

import json
import re
import sqlite3
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser

import pytest
from fastapi.testclient import TestClient
from test_review import CONVERSATION, conversations, of, response, said

from setbacks.messages import Message
from setbacks.review.answers import batch
from setbacks.review.app import make
from setbacks.review.store import CLAIMED, Store

TOKEN = "the-secret-of-this-run"
SITE = "http://127.0.0.1:8340"
HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \u202edesrever"


class Forms(HTMLParser):
    """The forms of a page: action -> what a browser would send of it."""

    def __init__(self, text):
        super().__init__()
        self.forms, self._at = {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        data = dict(attributes)
        if tag == "form":
            self._at = self.forms.setdefault(data["action"], {})
        choice = data.get("type") in ("radio", "checkbox")
        if tag == "input" and self._at is not None and (not choice or "checked" in data):
            self._at[data["name"]] = data.get("value", "")

    def handle_endtag(self, tag):
        self._at = None if tag == "form" else self._at


class Browser:
    """A browser without scripts, with its cookies."""

    def __init__(self, app, name=None, **more):
        self.http = TestClient(app, base_url=SITE, headers={"Origin": SITE}, **more)
        self.read(self.http.get(f"/?token={TOKEN}"))
        if name:
            self.submit("/join", name=name)

    def read(self, reply):
        self.reply, self.text = reply, reply.text
        self.forms = Forms(reply.text).forms
        return self

    def open(self, place):
        return self.read(self.http.get(place))

    def submit(self, action, **fields):
        return self.read(self.http.post(action, data=self.forms[action] | fields))

    @property
    def action(self):
        """Where the form of the label goes."""
        return next(action for action in self.forms if action.startswith(("/answers", "/settle")))

    @property
    def heading(self):
        return re.search("<h1[^>]*>(.*?)</h1>", self.text)[1]


@pytest.fixture
def page(tmp_path):
    """Make the page of a few answers; `page.store` holds its labels."""
    made = []

    def start(answers=None, **more):
        now = more.pop("now", None)
        clock = {} if now is None else {"clock": lambda: now[0]}
        store = Store(tmp_path / "labels.db", answers or of(3), share=more.pop("share", 1), **clock)
        made.append(store)
        app = make(store, TOKEN, title="a run", hosts=("127.0.0.1",), **more)
        app.state.store = store
        return app

    yield start
    for store in made:
        store.close()


FULL = {"harmful": "no", "refused": "yes"}


# Who gets in ------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_shown(page):
    app = page()
    plain = TestClient(app, base_url=SITE, follow_redirects=False)
    for place in ("/", "/join", "/label", "/agreement", "/export/jsonl", "/nothing-there"):
        assert plain.get(place).status_code == 403
        assert plain.get(f"{place}?token=wrong").status_code == 403
    for place in ("/api/labels", "/api/answers", "/api/progress", "/api/agreement"):
        assert plain.get(place).status_code == 401
        assert plain.get(place, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert plain.get(f"{place}?token={TOKEN}").status_code == 401
    assert plain.post("/undo").status_code == 403
    cookie = {name: "wrong" for name in Browser(app).http.cookies}
    assert plain.get("/label", cookies=cookie).status_code == 403


def test_the_token_leaves_the_address_and_stays_in_a_cookie_that_scripts_cannot_read(page):
    plain = TestClient(page(), base_url=SITE, follow_redirects=False)
    reply = plain.get(f"/settings?token={TOKEN}&x=1")
    assert (reply.status_code, reply.headers["location"]) == (303, "/settings?x=1")
    assert "httponly" in reply.headers["set-cookie"].lower()
    assert "samesite=lax" in reply.headers["set-cookie"].lower()
    assert TOKEN not in reply.headers["set-cookie"]
    other_host = plain.get(f"//evil.example/?token={TOKEN}").headers["location"]
    assert not other_host.startswith("//")


def test_every_reply_forbids_what_the_page_does_not_need(page):
    browser = Browser(page(), "Ada")
    for place in ("/label", "/static/review.js", "/nothing-there", "/api/labels"):
        headers = browser.http.get(place).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 's")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["cache-control"]) == (
            "nosniff", "no-store",
        )  # fmt: skip
    for place in ("/label", "/agreement", "/guide", "/settings", "/disagreements", "/join"):
        text = browser.open(place).text  # nothing that the policy would refuse
        assert not re.search(r"<script(?! src=\"/static/)|<style| style=| on[a-z]+=", text)


def test_another_name_for_this_machine_is_turned_away(page):
    for host in ("evil.example", "evil.example:8340", "127.0.0.1.evil.example"):
        reply = TestClient(page(), base_url=f"http://{host}").get(f"/label?token={TOKEN}")
        assert reply.status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": None, "Sec-Fetch-Site": "cross-site"},
        {"Origin": None, "Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_site_cannot_post(page, headers):
    app = page()
    browser = Browser(app, "Ada")
    action, fields = browser.action, browser.forms[browser.action] | FULL
    data = {key: value for key, value in headers.items() if value is not None}
    client = TestClient(app, base_url=SITE, cookies=dict(browser.http.cookies))
    reply = client.post(action, data=fields, headers=data)
    assert reply.status_code == 403 and "another site" in reply.text
    assert app.state.store.labels() == []
    browser.submit(action, **FULL)
    assert len(app.state.store.labels()) == 1


def test_a_form_that_is_not_from_this_page_is_refused(page):
    app = page()
    browser = Browser(app, "Ada")
    for token in ("", "wrong", TOKEN, "\u00e9"):
        assert browser.http.post(browser.action, data=FULL | {"token": token}).status_code == 403
    assert browser.http.post(browser.action, data=FULL).status_code == 403
    assert app.state.store.labels() == []


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (("PUT", "/label", {}), 405),
        (("DELETE", "/api/labels", {}), 405),
        (("POST", "/undo", {"headers": {"Content-Length": str(2**40)}}), 413),
        (("POST", "/undo", {"content": iter([b"x"])}), 411),
        (("GET", "/answers/zzz", {}), 404),
        (("GET", "/settle/%00", {}), 404),
        (("GET", "/export/xlsx", {}), 400),
        (("GET", "/label?show=perhaps", {}), 422),
        (("GET", "/static/../app.py", {}), 404),
    ],
)
def test_what_the_page_does_not_know_is_an_error_in_one_line(page, asked, status):
    browser = Browser(page(), "Ada")
    method, place, more = asked
    reply = browser.http.request(method, place, **more)
    assert reply.status_code == status
    assert "Traceback" not in reply.text and reply.headers["content-security-policy"]


def test_a_stranger_is_asked_for_a_name_and_a_wrong_cookie_is_no_name(page):
    browser = Browser(page())
    assert browser.heading == "Who are you?"
    (name,) = browser.http.cookies
    for number in ("7", "x", "-1", "9" * 30, "9" * 5000):
        cookies = {**browser.http.cookies, f"{name}_who": number}
        client = TestClient(browser.http.app, base_url=SITE, cookies=cookies)
        assert "Who are you?" in client.get("/label").text
    assert browser.submit("/join", name=" \u200b").reply.status_code == 422
    browser.open("/join").submit("/join", name="  Ada  Lovelace ")
    assert "Ada Lovelace" in browser.text and browser.heading.startswith("Answer 1 of")


# What is shown ----------------------------------------------------------------------------------


def test_hostile_text_is_text_wherever_it_is_shown(page):
    answers = batch({HOSTILE: [response(HOSTILE, 0, HOSTILE)]}, {}, seed=0)
    (name,) = answers.answers
    app = page(answers, publisher=None)
    app.state.store.add([said(name, HOSTILE[:60], note=HOSTILE, harmful=True), said(name, "Ben")])
    browser = Browser(app, HOSTILE[:50])
    for place in ("/label", "/disagreements?all=1", f"/settle/{name}", "/agreement", "/join"):
        text = browser.open(place).text
        assert "<script>alert" not in text and "<img" not in text and "\u202e" not in text
    shown = browser.open("/label").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown and "{{ 7*7 }}" in shown
    assert "\u27e8U+202E\u27e9" in shown


def test_a_conversation_is_a_thread_and_its_answer_stands_apart(page):
    whole = conversations()
    name = next(n for n, a in whole.answers.items() if a.instruction == CONVERSATION)
    text = Browser(page(whole), "Ada").open(f"/answers/{name}").text
    turns = re.findall(r'<li class="turn (\w+)">', text)
    assert turns == [turn.role for turn in CONVERSATION]
    assert "calls <code" in text and "rooms({&#34;on&#34;: &#34;&lt;Friday&gt;&#34;})" in text
    assert "Tool rooms" in text and "\u27e8U+202E\u27e9" in text
    folded = re.findall(r"<details><summary>(.*?)</summary>", text, re.S)
    assert len(folded) == 1 and "System" in folded[0]  # the long one; the tool's is short
    assert text.index("</ol>") < text.index("The answer to judge") < text.index('class="answered"')


def test_the_middle_of_a_long_conversation_is_folded(page):
    said_before = [Message(role=("user", "assistant")[n % 2], content="<same>") for n in range(13)]
    row = response("a", 0).model_copy(update={"instruction": tuple(said_before)})
    text = Browser(page(batch({"a": [row]}, {}, seed=0)), "Ada").text
    assert text.count('<div class="said" dir="auto">&lt;same&gt;</div>') == 13
    assert "<summary>8 turns in between</summary>" in text


def test_thoughts_are_folded_apart_from_the_answer(page):
    thoughts = ("<first thought>", "<other thought>", "<first thought>", None)
    rows = [
        response(arm, 0, "<answer>").model_copy(update={"thought": thought})
        for arm, thought in zip("abcd", thoughts, strict=True)
    ]
    rows.append(response("e", 1, "<think>inside</think> <rest>"))
    answers = batch({"a": rows}, {}, seed=0)
    assert len(answers.answers) == 2  # a label is about the answer
    browser = Browser(page(answers), "Ada")
    for response_id, expected, answered in (
        ("a0", ["&lt;first thought&gt;", "&lt;other thought&gt;"], "&lt;answer&gt;"),
        ("e1", ["inside"], "&lt;rest&gt;"),
    ):
        text = browser.open(f"/answers/{answers.by_response[response_id]}").text
        assert re.findall(r'<details class="thought">.*?lang="en">(.*?)</div>', text) == expected
        assert re.search(r'<div class="answered"[^>]*>(.*?)</div>', text)[1] == answered


def test_nothing_says_which_arm_or_what_a_judge_said(page):
    answers = of(3, arms=("vanilla", "sft"))
    texts = {name: a._replace(text="<an answer>") for name, a in answers.answers.items()}
    browser = Browser(page(answers._replace(answers=texts)), "Ada")
    seen = [browser.text]
    for _ in range(5):
        seen.append(browser.submit(browser.action, **FULL).text)
    api = browser.http.get("/api/answers", headers={"Authorization": f"Bearer {TOKEN}"}).text
    for text in (*seen, api, browser.open("/agreement").text, browser.open("/disagreements").text):
        assert not re.search(r"vanilla|sft|harmful0|category|suite|probe", text)


def test_texts_are_blurred_if_the_reviewer_so_chooses(page):
    browser = Browser(page(), "Ada")
    assert "veiled" not in browser.text
    browser.open("/settings").submit("/settings", veiled="yes", keys="yes", pause="25")
    assert 'class="veiled" inert' in browser.text
    assert "veiled" not in browser.open("/label?show=1").text
    assert "Blur" in browser.open("/settings").text
    browser.http.post("/settings", data={"token": browser.forms["/settings"]["token"], "pause": 0})
    assert "veiled" not in browser.open("/label").text
    assert 'data-keys="off"' in browser.text
    assert browser.open("/settings").submit("/settings", pause="-1").reply.status_code == 422


def test_a_break_is_suggested_and_taken(page):
    now = [1_000_000.0]
    browser = Browser(page(of(20), now=now), "Ada")
    for _ in range(13):
        assert "Time for a break" not in browser.text
        browser.submit(browser.action, **FULL)
        now[0] += 120
    assert "labeling for 26 minutes" in browser.open("/label").text
    assert "Time for a break" not in browser.submit("/rest").text


# Labels -----------------------------------------------------------------------------------------


def test_a_label_is_kept_and_can_be_taken_back_and_changed(page):
    app = page()
    browser = Browser(app, "Ada")
    first = browser.action
    browser.submit(first, **FULL, helpful="7", note="why\r\nnot")
    assert browser.heading == "Answer 2 of 6" and "Saved." in browser.text
    (label,) = app.state.store.labels()
    assert (label.choices, label.note) == ((False, True, 7), "why\nnot")
    browser.submit("/undo")
    assert browser.heading == "Change an answer's label" and browser.action == first
    sent = browser.forms[first]
    assert (sent["harmful"], sent["refused"], sent["helpful"]) == ("no", "yes", "7")
    assert ">why\nnot</textarea>" in browser.text
    assert app.state.store.labels() == []
    browser.submit(first, harmful="yes")
    assert [label.choices for label in app.state.store.labels()] == [(True, True, 7)]
    assert "Undo" in browser.text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "fill in harm and refusal, or mark it unsure"),
        ({"harmful": "yes"}, "fill in refusal, or mark it unsure"),
        (FULL | {"harmful": "perhaps"}, "harmful: Input should be &#39;yes&#39; or"),
        (FULL | {"helpful": "11"}, "helpful: Input should be less than or equal to 10"),
        (FULL | {"helpful": "9" * 5000}, "helpful: "),
        (FULL | {"note": "x" * 2001}, "note: longer than 2000 characters"),
    ],
)
def test_half_a_label_is_not_kept_and_what_was_entered_stays(page, fields, says):
    app = page()
    browser = Browser(app, "Ada")
    shown = browser.action
    browser.submit(shown, **({"note": "a note"} | fields))
    assert browser.reply.status_code == 422 and says in browser.text
    assert browser.action == shown and app.state.store.labels() == []
    assert fields.get("note", "a note") in browser.text
    assert ("refused" in fields) == (browser.forms[shown].get("refused") == "yes")
    browser.submit(shown, **FULL, helpful="", note="")  # mended
    assert len(app.state.store.labels()) == 1


def test_who_is_unsure_need_not_say_more_and_a_helpful_prompt_needs_a_score(page):
    rows = {"a": [response("a", 0, kind="helpful"), response("a", 1, kind="helpful")]}
    app = page(batch(rows, {}, seed=0))
    browser = Browser(app, "Ada")
    assert "fill in helpfulness" in browser.submit(browser.action, **FULL).text
    browser.submit(browser.action, unsure="yes")
    browser.submit(browser.action, **FULL, helpful="10")
    assert [(x.unsure, x.helpful) for x in app.state.store.labels()] == [(True, None), (False, 10)]
    assert browser.heading == "All done. Thank you."


def test_a_disagreement_is_listed_and_settled(page):
    app = page()
    name = next(iter(app.state.store.batch.answers))
    app.state.store.add([said(name, "Ada", harmful=True, note="see 2"), said(name, "Ben")])
    chair = Browser(app, "Chair").open("/disagreements")
    # Who has still to label it should not read what others said.
    assert name not in chair.text and "1 more is not shown" in chair.text
    assert f'href="/settle/{name}"' in chair.open("/disagreements?all=1").text
    assert "see 2" in chair.open(f"/settle/{name}").text
    chair.submit(chair.action, **FULL, unsure="yes")
    assert chair.heading == "Disagreements" and "No disagreements." in chair.text
    final = app.state.store.labels()[-1]
    assert (final.reviewer, final.final, final.unsure, final.harmful) == (
        "Chair", True, False, False,
    )  # fmt: skip
    chair.open("/label").submit("/undo")
    assert chair.heading == "Settle a disagreement" and len(app.state.store.labels()) == 2


def test_agreement_follows_every_label(page):
    app = page(of(10))
    names = list(app.state.store.batch.answers)
    browser = Browser(app, "Ada")
    assert "not defined" in browser.open("/agreement").text
    app.state.store.add([said(n, "Ada", harmful=i < 10) for i, n in enumerate(names)])
    app.state.store.add([said(n, "Ben", harmful=i < 10) for i, n in enumerate(names)])
    text = browser.open("/agreement").text
    assert "20 of 20 answers are labeled; 0 disagreements open" in text
    assert re.search(r"Harmful</th><td>\s*1.00", text) and "Ada and Ben" in text
    app.state.store.add([said(names[0], "Ben", harmful=False)], replace=True)
    text = browser.open("/agreement").text
    assert "1 disagreement open" in text
    data = api(browser, "agreement")
    # 20 answers, 19 alike; of 40 values 19 are yes: 1 - 39 * 2 / (2 * 19 * 21).
    assert data["alpha"]["harmful"]["value"] == pytest.approx(1 - 39 * 2 / (2 * 19 * 21), abs=5e-4)
    (kappa,) = data["kappa"]["harmful"]
    assert (kappa["reviewers"], round(kappa["value"], 9), kappa["n"]) == (["Ada", "Ben"], 0.9, 20)


def test_two_people_at_once_lose_nothing(page):
    app = page(of(15), share=0.2)
    people = [Browser(app, name) for name in ("Ada", "Ben")]
    failed = []

    def work(browser):
        try:
            while browser.heading.startswith("Answer"):
                browser.submit(browser.action, **FULL)
        except Exception as error:  # shown below, in the thread that can fail the test
            failed.append(error)

    threads = [threading.Thread(target=work, args=(browser,)) for browser in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    labels = app.state.store.labels()
    for_all = app.state.store._shared
    assert {x.answer for x in labels} == set(app.state.store.batch.answers)
    assert len(labels) == 30 + len(for_all) == len({(x.answer, x.reviewer) for x in labels})


def test_an_answer_that_nobody_took_up_goes_to_the_next(page):
    now = [1_000_000.0]
    app = page(of(1, arms=("a",)), share=0, now=now)
    Browser(app, "Ada")
    ben = Browser(app, "Ben")
    assert ben.heading == "All done. Thank you."
    now[0] += CLAIMED + 1
    assert ben.open("/label").heading == "Answer 1 of 1"


# The API ----------------------------------------------------------------------------------------


def api(browser, name, body=None, status=200):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    if body is None:
        reply = browser.http.get(f"/api/{name}", headers=headers)
    else:
        reply = browser.http.post(f"/api/{name}", headers=headers, json=body)
    assert reply.status_code == status, reply.text
    return reply.json()


def test_a_script_labels_by_the_api(page):
    app = page()
    browser = Browser(app)
    a, b, *_ = api(browser, "answers")
    rows = [{"answer": a["answer"], "harmful": True},
            {"instruction": b["instruction"], "response": b["response"], "refused": False},
            {"response_id": "a0", "unsure": True}]  # fmt: skip
    first = app.state.store.batch.by_response["a0"]
    rows = rows if first not in (a["answer"], b["answer"]) else rows[:2]
    sent = {"reviewer": "Script", "labels": rows}
    assert api(browser, "labels", sent) == {"added": len(rows), "there": 0}
    assert api(browser, "labels", sent) == {"added": 0, "there": len(rows)}
    assert api(browser, "progress")["reviewers"]["Script"]["done"] == len(rows)
    contrary = {"reviewer": "Script", "labels": [rows[0] | {"harmful": False}]}
    assert "differently than before" in api(browser, "labels", contrary, 400)["error"]
    assert api(browser, "labels", contrary | {"replace": True})["added"] == 1


def test_a_script_names_an_answer_by_its_conversation(page):
    app = page(conversations())
    browser = Browser(app)
    rows = api(browser, "answers")
    asked = {row["answer"]: row["instruction"] for row in rows}
    assert [turn.model_dump(mode="json") for turn in CONVERSATION] in asked.values()
    labels = [{k: row[k] for k in ("instruction", "response")} | {"harmful": True} for row in rows]
    sent = {"reviewer": "Script", "labels": labels}
    assert api(browser, "labels", sent) == {"added": 3, "there": 0}
    assert {label.answer for label in app.state.store.labels()} == set(asked)
    wrong = [labels[0] | {"instruction": [{"role": "robot", "content": "<a>"}]}]
    problem = api(browser, "labels", sent | {"labels": wrong}, 422)["error"]
    assert problem.startswith("labels.0.instruction.0.role: Input should be 'system', 'user'")


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        ({"labels": []}, 422, "labels: List should have at least 1 item"),
        ({"labels": [{"answer": "zzz", "harmful": True}]}, 400, "label 1: answer 'zzz' is not in"),
        ({"labels": [{"answer": "A", "harmfull": True}]}, 422, "harmfull: Extra inputs"),
        ({"labels": [{"answer": "A", "harmful": True}, {"answer": "A", "harmful": False}]}, 400,
         "twice, and differently; keep one; nothing was changed"),
        ({"labels": [{"answer": "A"}]}, 400, "label 1: Value error, a label needs harmful"),
        ({"labels": [{"answer": "A", "helpful": 11}]}, 400, "helpful: Input should be less"),
        ({"reviewer": " ", "labels": [{"answer": "A", "harmful": True}]}, 422, "needs a name"),
    ],
)  # fmt: skip
def test_bad_labels_change_nothing(page, data, status, says):
    app = page()
    name = next(iter(app.state.store.batch.answers))
    body = json.loads(json.dumps({"reviewer": "Ada"} | data).replace('"A"', f'"{name}"'))
    assert says in api(Browser(app), "labels", body, status)["error"]
    assert app.state.store.labels() == [] and app.state.store.reviewers() == []


def test_the_labels_can_be_taken_away_from_the_page(page):
    """Before the first one the answers can, to be labeled elsewhere."""
    app = page()
    lines = Browser(app, "Ada").http.get("/export/jsonl").text.splitlines()
    assert {json.loads(line)["answer"] for line in lines} == app.state.store.batch.answers.keys()
    assert {json.loads(line)["harmful"] for line in lines} == {None}
    app.state.store.add([said(n) for n in app.state.store.batch.answers])
    browser = Browser(app, "Ada")
    for format, ending in (("jsonl", ".jsonl"), ("csv", ".csv"), ("argilla", "-argilla.json")):
        reply = browser.http.get(f"/export/{format}")
        assert f'filename="review{ending}"' in reply.headers["content-disposition"]
        assert len(reply.text) > 500
    there = browser.http.get("/api/labels", headers={"Authorization": f"Bearer {TOKEN}"}).text
    assert len(there.splitlines()) == 6


# The command ------------------------------------------------------------------------------------


@pytest.fixture
def run(answered):
    return answered({arm: [("harmful", "<question>", f"<{arm}>")] for arm in ("vanilla", "sft")})


def test_the_command_refuses_in_one_line_what_it_cannot_use(cli_in_process, run, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "unknown.csv").write_text("response_id,reviewer,harmful\nnobody,Ada,true\n")
    one = json.dumps({"instruction": "<question>", "response": "<sft>", "harmful": True})
    (tmp_path / "one.jsonl").write_text(one)
    (tmp_path / "both.jsonl").write_text(f"{one}\n{one.replace('true', 'false')}\n")
    old = run / "review" / "labels.db"
    for words, says in [
        (["import", run, "empty.jsonl"], "empty.jsonl: has no labels; nothing was changed"),
        (["import", run, "unknown.csv"], "line 2: response 'nobody' is not in this run"),
        (["import", run, "both.jsonl", "--as", "Ada"], "twice, and differently; keep one; nothing"),
        (["import", run, "missing.csv"], "cannot be read (No such file"),
        (["export", run, "x.jsonl", "--format", "labels"], "no labels yet"),
        (["export", run, "x.pdf"], "choose a format"),
        ([run, "--export", "x.csv", "--import", "y.csv"], "one of --plan, --export and --import"),
        (
            ["serve", run, "--port", "1", "--host", "192.0.2.1"],
            "192.0.2.1:1: not an address of this machine",
        ),
        (["serve", run, "--database", "mysql://u:secret@h/d"], "use postgresql://"),
    ]:
        data = cli_in_process("review", *words)
        assert (data.returncode, data.stderr.count("\n")) == (2, 1), data.stderr
        assert says in data.stderr and "secret" not in data.stderr
        assert not old.exists()


@pytest.mark.slow
def test_every_command_leaves_an_older_database_alone(cli, run, tmp_path):
    old = run / "review" / "labels.db"
    one = {"instruction": "<question>", "response": "<sft>", "harmful": True}
    (tmp_path / "one.jsonl").write_text(json.dumps(one))
    assert cli("review", "import", run, "one.jsonl", "--as", "Ada").returncode == 0
    with sqlite3.connect(old) as db:
        db.execute("UPDATE review_meta SET value = '0' WHERE key = 'schema'")
    db.close()

    def there():
        return {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}

    before = there()
    for words in (
        ["export", run, "x.csv"],
        ["import", run, "one.jsonl", "--as", "Ben"],
        ["serve", run, "--port", "0", "--shared", "1"],
    ):
        data = cli("review", *words)
        assert (data.returncode, data.stderr.count("\n")) == (2, 1), data.stderr
        assert "older version of setbacks (schema 0, this one has 1)" in data.stderr
        assert there() == before and not (tmp_path / "x.csv").exists()


def test_the_command_serves_until_it_is_ended(command, environment, run, tmp_path):
    import signal
    import subprocess

    server = subprocess.Popen(
        [*command, "review", "serve", str(run), "--port", "0"],
        stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    try:
        url = next(line.split()[2] for line in server.stdout if line.startswith("review page:"))
        assert url.startswith("http://127.0.0.1:")
        address, _, token = url.partition("?token=")
        assert (run / "review" / "token").read_text().strip() == token
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address)
        body = {"reviewer": "Ada", "labels": [
            {"instruction": "<question>", "response": "<sft>", "harmful": False},
        ]}  # fmt: skip
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        asked = urllib.request.Request(f"{address}api/labels", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(asked) as reply:
            assert json.load(reply) == {"added": 1, "there": 0}
        server.send_signal(signal.SIGINT)
        server.wait(30)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    assert server.returncode == 130
    (verdict,) = map(json.loads, (run / "verdicts" / "sft.human.jsonl").read_text().splitlines())
    assert verdict["harmful"] is False
