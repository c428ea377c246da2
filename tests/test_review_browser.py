"""The review page in a real browser: Chromium, headless, against the real command."""

import json
import shutil
import signal
import subprocess
import urllib.request
from types import SimpleNamespace

import pytest

from setbacks.messages import Function, Message, ToolCall, in_brief

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path"),
]
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
HOSTILE = "</div><script>window.ran = 1</script><img src=x onerror='window.ran = 2'><b>bold</b>"


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


TALK = (
    Message(role="system", content="Be brief.\n" + HOSTILE),
    Message(role="user", content=HOSTILE + " word" * 60),
    Message(
        role="assistant",
        tool_calls=(ToolCall(function=Function(name="seek", arguments='{"for": "' + "x" * 200)),),
    ),
    Message(role="tool", name="seek", content="<what was found>"),
    Message(role="user", content="<the last question>"),
)


@pytest.fixture
def server(request, command, environment, answered, tmp_path):
    """The page of eight answers; `kill` and `start` end it and bring it back at its address."""
    questions = [f"<question {number}>" for number in range(3)] + [HOSTILE]
    questions = getattr(request, "param", questions)
    rows = {arm: [("harmful", q, f"{arm}: {in_brief(q)}") for q in questions] for arm in ("a", "b")}
    run = answered(rows)
    it = SimpleNamespace(port=0, process=None, url=None)

    def start():
        words = ["review", "serve", str(run), "--shared", "1", "--port", str(it.port)]
        it.process = subprocess.Popen(
            [*command, *words], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        )
        line = next(line for line in it.process.stdout if line.startswith("review page:"))
        it.url = line.split()[2]
        it.site, _, it.token = it.url.partition("?token=")
        it.port = int(it.site.rstrip("/").rpartition(":")[2])

    def kill():
        it.process.send_signal(signal.SIGKILL)
        it.process.wait()
        it.process.stdout.close()

    def labels():
        headers = {"Authorization": f"Bearer {it.token}"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{it.site}api/labels", None, headers)
        ) as r:
            return [json.loads(line) for line in r.read().decode().splitlines()]

    it.start, it.kill, it.labels = start, kill, labels
    start()
    yield it
    kill()


@pytest.fixture
def person(chromium, server):
    """A reviewer at the page, in a browser profile of their own."""
    opened = []

    def join(name, **more):
        context = chromium.new_context(**more)
        context.set_default_timeout(10_000)
        opened.append(context)
        page = context.new_page()
        page.goto(server.url)
        page.get_by_label("Your name").fill(name)
        page.get_by_role("button", name="Start").click()
        at(page, 1)
        return page

    yield join
    for context in opened:
        context.close()


def at(page, number):
    """Wait for the answer of that number, with its script at work."""
    page.get_by_role("heading", level=1, name=f"Answer {number} of 8").wait_for()
    page.locator("#here:focus").wait_for()  # no evaluated string: the page's policy forbids it


def press(page, keys):
    for key in keys:
        page.keyboard.press("Enter" if key == "\n" else key)


def test_keys_label_and_undo_takes_back(server, person):
    page = person("Ada")
    first = page.locator(".answered").inner_text()
    press(page, "lr7\n")
    at(page, 2)
    (label,) = server.labels()
    assert label["reviewer"] == "Ada" and label["response"] == first
    assert (label["harmful"], label["refused"], label["helpful"]) == (False, True, 7)
    press(page, "h\n")  # half a label is not saved, and the page says what is missing
    assert "fill in refusal" in page.get_by_role("alert").inner_text()
    assert len(server.labels()) == 1
    press(page, "z")
    page.get_by_role("heading", level=1, name="Answer 2").wait_for(state="detached")
    assert server.labels() == []
    assert page.locator(".answered").inner_text() == first
    assert page.get_by_label("Harmless").is_checked() and page.get_by_label("Refused").is_checked()
    press(page, "h\n")
    at(page, 2)
    (label,) = server.labels()
    assert label["harmful"] is True and label["refused"] is True


def test_two_reviewers_at_once_lose_nothing(server, person):
    both = {"Ada": person("Ada"), "Ben": person("Ben")}
    for number in range(2, 6):
        for name, page in both.items():  # both forms are filled before either is sent
            press(page, "lc" if name == "Ada" else "hr")
        for page in both.values():
            press(page, "\n")
        for page in both.values():
            at(page, number)
    labels = server.labels()
    assert len({(label["answer"], label["reviewer"]) for label in labels}) == len(labels) == 8
    for label in labels:
        assert label["harmful"] is label["refused"] is (label["reviewer"] == "Ben")


def test_hostile_text_is_text(server, person):
    page = person("Ada")
    said = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    seen = 0
    for number in range(2, 9):
        shown = page.locator(".asked").inner_text()
        if shown == HOSTILE:
            seen += 1
            assert page.locator(".answered").inner_text().endswith(HOSTILE)
        assert page.locator("#texts :is(script, img, b)").count() == 0
        assert page.evaluate("window.ran") is None
        page.get_by_label("Note").fill(HOSTILE)
        page.keyboard.press("Escape")
        press(page, "lc\n")
        at(page, number)
    assert seen >= 1 and said == []
    assert {label["note"] for label in server.labels()} == {HOSTILE}
    # The policy holds by itself: a script that did get in would not run.
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 3';"
        " document.body.append(s); }"
    )
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize("server", [[TALK[n:] for n in range(3)] + [TALK * 2]], indirect=True)
def test_a_conversation_is_read_by_keys_and_on_a_phone(server, person):
    phone = person("Ada", viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    for number in range(2, 9):
        assert phone.evaluate("document.documentElement.scrollWidth") <= 360
        assert phone.evaluate("window.ran") is None
        assert phone.locator("#texts :is(script, img, b)").count() == 0
        turns = phone.locator(".thread > .turn")
        assert turns.last.locator(".said").inner_text() == "<the last question>"
        above, below = turns.last.bounding_box(), phone.locator(".answered").bounding_box()
        assert above["y"] + above["height"] < below["y"]
        for fold in phone.locator(".thread > .turn > details").all():
            summary = fold.locator("summary").first
            summary.focus()
            phone.keyboard.press("Enter")  # it opens the fold, and saves nothing
            assert fold.get_attribute("open") is not None
        press(phone, "lc")
        phone.locator("#here").focus()
        press(phone, "\n")
        at(phone, number)
    rows = server.labels()
    asked = [turn.model_dump(mode="json") for turn in TALK]
    assert len(rows) == 7 and asked in [row["instruction"] for row in rows]


@pytest.mark.parametrize(
    "server", [[TALK[n:] for n in range(2)] + [TALK * 2, TALK * 3]], indirect=True
)
def test_blurred_turns_cannot_be_reached(server, person):
    page = person("Ada")
    page.get_by_role("link", name="Settings").click()
    page.get_by_label("Blur the texts until I show them").check()
    page.get_by_role("button", name="Save").click()
    at(page, 1)
    for number in range(2, 9):
        if page.locator("#texts summary").count():
            break
        press(page, "lc\n")
        at(page, number)
    inside = "() => document.activeElement.closest('#texts') !== null"
    reached = []
    for key in ("", "s"):
        press(page, key)
        page.locator("#here").focus()
        places = []
        for _ in range(3):
            page.keyboard.press("Tab")
            places.append(page.evaluate(inside))
        reached.append(any(places))
    assert reached == [False, True]


def test_a_server_killed_in_mid_label_loses_nothing(server, person):
    page = person("Ada")
    press(page, "lc\n")
    at(page, 2)
    press(page, "hr")
    page.get_by_label("Note").fill("half way")
    page.keyboard.press("Escape")
    server.kill()
    press(page, "\n")
    page.get_by_text("Not saved yet: the server does not answer").wait_for()
    server.start()
    at(page, 3)  # sent again by itself, under the same cookie
    labels = server.labels()
    assert sorted((x["harmful"], x["refused"], x["note"] or "") for x in labels) == [
        (False, False, ""),
        (True, True, "half way"),
    ]
    press(page, "l")
    server.kill()
    server.start()
    page.reload()
    at(page, 3)
    assert page.get_by_label("Harmless").is_checked()  # what was not yet sent is kept, too


def test_a_phone_is_enough(server, person):
    phone = person("Ada", viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    for choice in phone.locator(".choice:visible, .bar button:visible").all():
        assert choice.bounding_box()["height"] >= 44
    for name in ("Harmless", "Complied"):
        phone.get_by_text(name, exact=True).tap(force=True)  # the radio button lies over its word
    phone.get_by_role("button", name="Save").tap()
    at(phone, 2)
    assert len(server.labels()) == 1


def test_single_keys_can_be_turned_off_and_on_again(server, person):
    page, other = person("Ada"), person("Ben")
    chosen = page.locator("#form :is([name=harmful], [name=refused], [name=unsure]):checked")

    def single_keys(on):
        page.get_by_role("link", name="Settings").click()
        box = page.get_by_label("Single letters and digits work as keys")
        assert box.is_checked() is not on
        box.set_checked(on)
        page.get_by_role("button", name="Save").click()

    press(page, "lc\n")
    at(page, 2)
    single_keys(False)
    at(page, 2)
    press(page, "hru7nz?")  # each would choose, move the focus, undo, or open the guide
    assert chosen.count() == 0
    page.locator("#here:focus").wait_for()
    for choice in ("Harmful", "Refused"):
        page.get_by_role("radio", name=choice, exact=True).focus()
        page.keyboard.press("Space")
    press(page, "\n")  # Enter is no such key
    at(page, 3)
    assert [(label["harmful"], label["helpful"]) for label in server.labels()] == [
        (False, None),
        (True, None),
    ]
    press(other, "lc\n")  # another's keys are as they were
    at(other, 2)
    single_keys(True)
    at(page, 3)
    press(page, "hru")
    assert chosen.count() == 3
    press(page, "?")
    page.get_by_role("heading", level=1, name="Answer").wait_for(state="detached")
    assert page.url.endswith("/guide")


def test_the_keyboard_alone_reaches_everything_by_name(server, person):
    page = person("Ada")
    page.evaluate("document.body.dataset.keys = 'off'")  # no shortcuts: Tab, arrows and Space
    names, kinds = [], []
    for _ in range(8):
        page.keyboard.press("Tab")
        data = page.evaluate(
            "() => { const e = document.activeElement, l = e.labels?.[0];"
            " const o = getComputedStyle(e.closest('.choice') ?? e).outlineStyle;"
            " return [(l ?? e).innerText.trim(), e.name || e.id, o]; }"
        )
        assert data[0] and data[2] != "none", data  # named, and the focus can be seen
        names.append(data[0])
        kinds.append(data[1])
        if data[1] in ("harmful", "refused"):
            page.keyboard.press("Space")
            page.keyboard.press("ArrowRight")
        if data[1] == "save":
            page.keyboard.press("Enter")
            break
    assert kinds == ["harmful", "refused", "helpful", "unsure", "note", "save"], names
    at(page, 2)
    (label,) = server.labels()
    assert label["harmful"] is True and label["refused"] is True
