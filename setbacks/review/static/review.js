// Comfort alone: keys, drafts, and a label that is sent again until the server has it. Every page
// works without this file.
"use strict";

const root = document.documentElement;
const form = document.getElementById("form");
const problem = document.getElementById("problem");
const here = document.getElementById("here");
const texts = document.getElementById("texts");
const show = document.getElementById("show");
const aloud = document.getElementById("aloud");
const live = document.getElementById("live");
root.classList.add("js");

// What was entered and not saved outlives a reload; it leaves this tab no other way than by Save.
const draft = form && `setbacks:${form.dataset.reviewer}:${form.action}`;
let sending = false;

function fields() {
  const told = new URLSearchParams(new FormData(form));
  told.delete("token");
  told.delete("form");
  return told;
}

function restore() {
  const kept = sessionStorage.getItem(draft);
  if (kept === null) return;
  const told = new URLSearchParams(kept);
  for (const input of form.querySelectorAll("input:not([type=hidden])")) {
    input.checked = told.getAll(input.name).includes(input.value);
  }
  form.elements.note.value = told.get("note") ?? "";
}

function missing() {
  if (form.elements.unsure?.checked) return [];
  return [...form.querySelectorAll("fieldset[data-needed]")].filter(
    (set) => !set.querySelector("input:checked"),
  );
}

function tell(words) {
  problem.textContent = words;
}

async function send() {
  if (sending) return;
  const left = missing();
  if (left.length) {
    const names = left.map((set) => set.dataset.needed).join(" and ");
    tell(`Not saved: fill in ${names}, or mark it unsure.`);
    left[0].querySelector("input").focus();
    return;
  }
  sending = true;
  document.getElementById("save").setAttribute("aria-busy", "true");
  // The form has a number of its own, so sending it twice is one label.
  const body = new URLSearchParams(new FormData(form));
  for (;;) {
    try {
      const reply = await fetch(form.action, { method: "POST", body, redirect: "manual" });
      if (reply.type === "opaqueredirect") {
        sessionStorage.removeItem(draft);
        location.assign(form.dataset.next);
        return;
      }
      if (reply.status !== 503) {
        form.submit(); // the server has something to say: let it
        return;
      }
    } catch {
      // no server
    }
    tell("Not saved yet: the server does not answer. Your entries are kept, and sending is retried.");
    await new Promise((done) => setTimeout(done, 1500));
  }
}

function toggle() {
  const hidden = texts.classList.toggle("veiled");
  texts.inert = hidden; // neither read aloud nor reached by Tab
  if (!show) return;
  show.firstChild.textContent = hidden ? "Show the texts " : "Blur the texts ";
  // A key that is pressed far from the texts is heard, too.
  aloud.textContent = hidden ? "The texts are blurred." : "The texts are shown.";
}

function choose(name, value) {
  const input = form.querySelector(`input[name=${name}][value="${value}"]`);
  if (!input) return;
  input.checked = input.type === "checkbox" ? !input.checked : true;
  input.dispatchEvent(new Event("change", { bubbles: true }));
  input.focus({ preventScroll: true });
}

const keys = {
  l: () => choose("harmful", "no"),
  h: () => choose("harmful", "yes"),
  c: () => choose("refused", "no"),
  r: () => choose("refused", "yes"),
  u: () => choose("unsure", "yes"),
  n: () => form.elements.note.focus(),
  s: toggle,
  "-": () => choose("helpful", ""),
};
for (const digit of "1234567890") keys[digit] = () => choose("helpful", digit === "0" ? 10 : digit);

document.addEventListener("keydown", (event) => {
  const at = event.target;
  const writing = at.matches("textarea, select, input:not([type=radio], [type=checkbox])");
  if (event.isComposing) return;
  if (form && writing) {
    if (event.key === "Escape") here.focus();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  }
  if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (form && event.key === "Enter" && !at.matches("a, button, summary")) {
    event.preventDefault();
    if (!event.repeat) form.requestSubmit();
    return;
  }
  if (document.body.dataset.keys !== "on" || event.repeat) return;
  const key = event.key.toLowerCase();
  if (key === "z" && document.getElementById("undo")) {
    document.getElementById("undoing").requestSubmit();
  } else if (key === "?") {
    location.assign("/guide");
  } else if (form && keys[key]) {
    keys[key]();
  } else {
    return;
  }
  event.preventDefault();
});

if (form) {
  restore();
  form.addEventListener("input", () => sessionStorage.setItem(draft, fields()));
  form.addEventListener("change", () => sessionStorage.setItem(draft, fields()));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  if (show) show.role = "button"; // it leads nowhere now
  show?.addEventListener("click", (event) => {
    event.preventDefault();
    toggle();
  });
  show?.addEventListener("keydown", (event) => {
    if (event.key !== " ") return;
    event.preventDefault();
    toggle();
  });
}

// What others do meanwhile is shown without a reload, and without a word to who reads it aloud.
async function refresh() {
  if (document.hidden) return;
  try {
    const reply = await fetch(location.href);
    if (!reply.ok || reply.redirected) return;
    const fresh = new DOMParser().parseFromString(await reply.text(), "text/html");
    const now = fresh.getElementById("live");
    if (now && now.innerHTML !== live.innerHTML) live.replaceChildren(...now.childNodes);
  } catch {
    // no server; the next try may find one
  }
}
if (live) setInterval(refresh, 5000);

// A page that the browser kept aside is no longer what the server has.
addEventListener("pageshow", (event) => event.persisted && location.reload());
// So that the keys work, and a screen reader says where one is.
(problem?.textContent ? problem : here)?.focus({ preventScroll: true });
