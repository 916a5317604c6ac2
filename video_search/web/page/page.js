// The page of video_search/web/app.py: sends queries, shows the results, and can be used with the keyboard alone.

const element = (id) => document.getElementById(id);
const [form, query, file, status] = ["search", "query", "file", "status"].map(element);
const [asked, example, words, results, more] = ["asked", "example", "words", "results", "more"].map(element);

const MARKS = ["[start]", "[end]"]; // tokens that represent the whole sentence
const STEP = 10; // videos of a first request, and of each "More videos"

let limits = { max_top: 100, max_upload_bytes: Infinity, max_characters: Infinity };
let running = new AbortController(); // the newest search; older ones are aborted
let repeat = null; // the newest search, as a function of the number of videos
let hits = []; // the hits on the page, in the order of the list

// ---- Asking ----

async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const isText = typeof answer.detail === "string";
  throw new Error(isText ? answer.detail : `The server answers with error ${response.status}.`);
}

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

async function run(search, count, waiting) {
  running.abort();
  const current = (running = new AbortController());
  repeat = search;
  say(waiting);
  results.setAttribute("aria-busy", "true");
  try {
    const answer = await search(count, current.signal);
    if (!current.signal.aborted) show(answer, count);
  } catch (error) {
    if (!current.signal.aborted) fail(error);
  } finally {
    if (current === running) results.removeAttribute("aria-busy");
  }
}

function fail(error) {
  clear();
  say(error.message, true);
}

function searchText(text) {
  showExample(null);
  document.title = `${text} – Video search`;
  const search = (top, signal) => ask("api/search", {
    method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text, top }),
  });
  return run(search, STEP, "Searching…");
}

function searchSimilar(video) {
  query.value = "";
  showExample(`video/${video}`);
  document.title = "Similar videos – Video search";
  const address = (top) => `api/similar?${new URLSearchParams({ video, top })}`;
  return run((top, signal) => ask(address(top), { signal }), STEP, "Searching for similar videos…");
}

function searchFile(chosen) {
  if (chosen.size > limits.max_upload_bytes) {
    const most = Math.floor(limits.max_upload_bytes / 2 ** 20);
    say(`${chosen.name} is too large: at most ${most} MB are accepted.`, true);
    return;
  }
  query.value = "";
  history.pushState(null, "", "./");
  document.title = `Like ${chosen.name} – Video search`;
  showExample(URL.createObjectURL(chosen));
  const search = (top, signal) => ask(`api/example?top=${top}`, {
    method: "POST", signal, headers: { "Content-Type": "application/octet-stream" }, body: chosen,
  });
  run(search, STEP, `Sending ${chosen.name}…`);
}

// The address names the search, so that links to it and the back button work.
function searchAddress() {
  const parameters = new URLSearchParams(location.search);
  query.value = parameters.get("q") ?? "";
  if (parameters.get("q")?.trim()) searchText(parameters.get("q"));
  else if (parameters.get("like")) searchSimilar(parameters.get("like"));
  else {
    running.abort();
    clear();
    showExample(null);
    say("");
    document.title = "Video search";
  }
}

function go(parameters) {
  const address = `?${new URLSearchParams(parameters)}`;
  if (address !== location.search) history.pushState(null, "", address);
  searchAddress();
}

// ---- Showing ----

function clock(second) {
  const whole = Math.floor(second);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function clear() {
  hits = [];
  results.replaceChildren();
  words.replaceChildren();
  asked.hidden = example.hidden;
  more.hidden = true;
}

function showExample(address) {
  if (example.src.startsWith("blob:")) URL.revokeObjectURL(example.src);
  example.hidden = address === null;
  if (address === null) example.removeAttribute("src");
  else example.src = address;
}

function show(answer, count) {
  const isMore = count > STEP;
  const hadFocus = results.contains(document.activeElement);
  if (!isMore) clear();
  const known = hits.length;
  hits = [...hits, ...answer.hits.slice(known)];
  results.append(...hits.slice(known).map((hit, index) => makeResult(hit, known + index + 1)));
  more.hidden = hits.length < count || count >= limits.max_top;
  if (hits.length) showWords(hits[0]);
  if (isMore || hadFocus) results.children[known]?.focus();
  if (!isMore) scrollTo(0, 0);
  const found = hits.length === 1 ? "1 video" : `${hits.length} videos`;
  const time = answer.seconds < 0.01 ? "less than 0.01" : answer.seconds.toFixed(2);
  say([`${found} of ${answer.scanned}, in ${time} seconds.`, answer.notice].filter(Boolean).join(" "));
}

function showWords(hit) {
  // Heads that encode whole sentences give equal weights to all words: their shares of the score say more.
  const alike = hit.words.length > 1 && hit.words.every((word) => word.weight === hit.words[0].weight);
  const value = (word) => Math.max(alike ? word.share : word.weight, 0);
  const most = Math.max(...hit.words.map(value));
  words.replaceChildren(...hit.words.map((word) => {
    const item = document.createElement("li");
    const button = item.appendChild(document.createElement("button"));
    button.type = "button";
    button.textContent = word.text;
    button.classList.toggle("mark", MARKS.includes(word.text));
    button.title = `weight ${word.weight.toFixed(3)}, adds ${word.share.toFixed(3)}, best at ${clock(word.second)}`;
    button.style.setProperty("--shade", most > 0 ? value(word) / most : 0);
    button.addEventListener("click", () => showSecond(results.children[hits.indexOf(hit)], word.second));
    return item;
  }));
  words.dir = getComputedStyle(query).direction; // the direction of the typed text
  element("unit").textContent = alike ? "what the words add to the score" : "the weights of the words";
  element("shades").hidden = !hit.words.length; // an example has none
  element("shown").textContent = hit.name;
  asked.hidden = false;
}

function makeResult(hit, rank) {
  const item = element("result").content.cloneNode(true).querySelector(".result");
  const find = (selector) => item.querySelector(selector);
  // A frame of little weight, such as a black one, adds little to the score, however well it matches.
  const best = bestNumber(hit.moments, (moment) => moment.weight * moment.score);
  item.tabIndex = 0;
  item.setAttribute("aria-label", `${rank}: ${hit.name}, score ${hit.score.toFixed(3)}`);
  find(".rank").textContent = rank;
  find(".name").textContent = hit.name;
  find(".score").textContent = hit.score.toFixed(3);
  find(".frames").append(...makeFrames(hit));
  find(".similar").addEventListener("click", () => go({ like: hit.video }));
  Object.assign(find(".download"), { href: `video/${hit.video}`, download: hit.name.split("/").pop() });

  const video = find("video");
  video.poster = frameAddress(hit, best);
  video.src = `video/${hit.video}`;
  video.addEventListener("error", () => explain(item, hit));
  video.currentTime = hit.moments[best].second; // playback starts here
  video.addEventListener("timeupdate", () => followTime(item, hit));
  // A file of which only the sound can be played raises no error.
  video.addEventListener("loadedmetadata", () => video.videoWidth || explain(item, hit));
  video.addEventListener("play", () => pauseOthers(video));
  item.addEventListener("focusin", () => showWords(hit));
  find(".frames").children[best].classList.add("best");
  selectFrame(item, best);
  return item;
}

function makeFrames(hit) {
  const most = Math.max(...hit.moments.map((moment) => moment.weight));
  return hit.moments.map((moment, number) => {
    const item = element("frame").content.cloneNode(true).querySelector("li");
    const second = clock(moment.second);
    const [button, image] = [item.querySelector("button"), item.querySelector("img")];
    image.src = frameAddress(hit, number);
    item.querySelector(".bar").style.height = `${most > 0 ? (100 * moment.weight) / most : 0}%`;
    item.querySelector(".second").textContent = second;
    button.title = `${second}, weight ${moment.weight.toFixed(3)}, match ${moment.score.toFixed(3)}`;
    button.setAttribute("aria-label", `Show ${button.title}`);
    button.addEventListener("click", () => showFrame(button.closest(".result"), number));
    return item;
  });
}

function bestNumber(moments, value) {
  return moments.reduce((best, moment, number) => (value(moment) > value(moments[best]) ? number : best), 0);
}

function frameAddress(hit, number) {
  return `frame/${hit.video}/${number}.jpg`;
}

// ---- Playing ----

function pauseOthers(video) {
  for (const other of document.querySelectorAll("video")) if (other !== video) other.pause();
}

function selectFrame(item, number) {
  const frames = item.querySelector(".frames").children;
  for (const frame of frames) frame.removeAttribute("aria-current");
  frames[number].setAttribute("aria-current", "true");
  item.querySelector(".still img").src = frames[number].querySelector("img").src;
}

function followTime(item, hit) {
  const now = item.querySelector("video").currentTime + 0.01; // a player may stop just before the requested second
  const shown = hit.moments.filter((moment) => moment.second <= now).length;
  selectFrame(item, Math.max(shown - 1, 0));
}

function showFrame(item, number) {
  const hit = hits[[...results.children].indexOf(item)];
  const video = item.querySelector("video");
  selectFrame(item, number);
  video.preload = "auto";
  video.currentTime = hit.moments[number].second;
}

function showSecond(item, second) {
  const { moments } = hits[[...results.children].indexOf(item)];
  showFrame(item, bestNumber(moments, (moment) => -Math.abs(moment.second - second)));
  item.scrollIntoView({ block: "nearest" });
}

function playOrPause(video) {
  if (video.hidden) return;
  if (video.paused) video.play().catch(() => {}); // the error event reports the reason
  else video.pause();
}

async function explain(item, hit) {
  const video = item.querySelector("video");
  video.hidden = true;
  item.querySelector(".still").hidden = false;
  const trouble = item.querySelector(".trouble");
  try {
    const response = await fetch(`video/${hit.video}`, { headers: { Range: "bytes=0-0" } });
    if (response.ok) trouble.textContent = "This browser cannot play the file: here are its frames.";
    else trouble.textContent = (await response.json()).detail;
    item.querySelector(".download").hidden = !response.ok;
  } catch {
    trouble.textContent = "The server does not answer. Is it still running?";
  }
}

// ---- Keyboard ----

function moveFrame(item, step) {
  const frames = [...item.querySelectorAll(".frames li")];
  const number = frames.findIndex((frame) => frame.hasAttribute("aria-current")) + step;
  if (number in frames) showFrame(item, number);
}

function moveResult(item, step) {
  const next = step > 0 ? item.nextElementSibling : item.previousElementSibling;
  if (next) next.focus();
  else if (step < 0) query.focus();
}

function pressInResult(item, event) {
  const actions = {
    ArrowDown: () => moveResult(item, 1),
    ArrowUp: () => moveResult(item, -1),
    ArrowRight: () => moveFrame(item, 1),
    ArrowLeft: () => moveFrame(item, -1),
    s: () => item.querySelector(".similar").click(),
  };
  // Enter and Space on a button or link of the result keep their own action.
  if (event.target === item) actions.Enter = actions[" "] = () => playOrPause(item.querySelector("video"));
  return actions[event.key];
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const item = event.target.closest(".result");
  let action;
  if (event.target === query) action = event.key === "ArrowDown" && (() => results.firstElementChild?.focus());
  else if (event.key === "/") action = () => query.select();
  else if (item && event.target.tagName !== "VIDEO") action = pressInResult(item, event); // the player handles its own keys
  if (!action) return;
  event.preventDefault();
  action();
}

// ---- Start ----

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const length = [...query.value].length; // as the server counts: an emoji is one
  const most = limits.max_characters;
  if (!query.value.trim()) say("Type a few words to search for.", true);
  else if (length > most) say(`The query has ${length} characters; at most ${most} are accepted.`, true);
  else go({ q: query.value });
});
element("choose").addEventListener("click", () => file.click());
file.addEventListener("change", () => {
  if (file.files.length) searchFile(file.files[0]);
  file.value = ""; // so that the same file can be chosen again
});
more.addEventListener("click", () => run(repeat, Math.min(hits.length + STEP, limits.max_top), "Searching…"));
document.addEventListener("keydown", press);
window.addEventListener("popstate", searchAddress);

const drop = element("drop");
window.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.hidden = !event.dataTransfer.types.includes("Files");
});
window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.hidden = true; });
window.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.hidden = true;
  if (event.dataTransfer.files.length) searchFile(event.dataTransfer.files[0]);
});

try {
  limits = await ask("api/about");
  element("about").textContent = `${limits.videos} videos in ${limits.folder}, ${limits.head}`;
  if (limits.notice) say(limits.notice, true);
  if (location.search) searchAddress();
} catch (error) {
  fail(error);
}
