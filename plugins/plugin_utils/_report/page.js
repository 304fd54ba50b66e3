/* Copyright (c) 2026, the quaywall.docker authors
GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
SPDX-License-Identifier: GPL-3.0-or-later */
"use strict";
// Everything that comes from a host is data here: it becomes text nodes, and attributes that hold text only.
(() => {
  const byId = (id) => document.getElementById(id);
  const DATA = JSON.parse(byId("index").textContent);
  const { strings, checks, severities, statuses, stations, hosts } = DATA;
  // The order of a finding's row, as _html.py writes it.
  const SEVERITY = 0, CHECK = 1, STATUS = 2, STATION = 3, CHAIN = 4, BOXES = 5, UNMEANT = 6;
  const PAGE = 50;
  const LISTED = 60;
  const DRAWN = 7;
  const STATUS_TEXTS = { new: "new", still: "still there", gone: "gone", not_judged: "not judged now", ignored: "ignored" };
  const PRESENT = new Set(["", "new", "still"]);
  const HIDDEN = /([\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb])/;

  // Text and elements ---------------------------------------------------------------------------------------------

  const shownText = (text) => text.split(HIDDEN).map((part, i) => (i % 2 ? spelled(part) : part)).join("");
  const spelled = (char) => "\\u" + char.charCodeAt(0).toString(16).padStart(4, "0");

  /** Append text; a character that would not be seen, or would turn the text around, is spelt. */
  function put(parent, text) {
    text.split(HIDDEN).forEach((part, i) => {
      if (i % 2) parent.append(el("span", { class: "hid" }, spelled(part)));
      else if (part) parent.append(document.createTextNode(part));
    });
  }

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : String(value));
    }
    for (const child of children.flat()) {
      if (typeof child === "string") put(node, child);
      else if (child) node.append(child);
    }
    return node;
  }
  const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
  const svg = (name, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
  const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  const bdi = (text) => el("bdi", {}, text);

  // What findings say is packed, and unpacked when it is looked at ----------------------------------------------------

  const pieces = new Map();
  function piece(number) {
    if (!pieces.has(number)) pieces.set(number, unpack(byId("piece-" + number).textContent));
    return pieces.get(number);
  }
  async function unpack(text) {
    const packed = atob(text.trim());
    const bytes = new Uint8Array(packed.length);
    for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return JSON.parse(await new Response(stream).text());
  }
  async function details(host) {
    const [, , , number, place] = hosts[host];
    return (await piece(number))[place];
  }

  // Filters -------------------------------------------------------------------------------------------------------

  const state = { severities: new Set(), statuses: new Set(), check: -1, host: -1, station: -1, text: "", ignored: false };
  const lowered = strings.map((text) => text.toLowerCase());
  const loweredHosts = hosts.map((host) => host[0].toLowerCase());

  function narrowed() {
    return state.severities.size > 0 || state.statuses.size > 0 || state.check >= 0 || state.station >= 0;
  }

  /** For each host the numbers of its findings that the filters leave, or null if the host is left out. */
  function matching() {
    const text = state.text.trim().toLowerCase();
    const named = text ? lowered.map((some) => some.includes(text)) : null;
    const checked = text ? checks.map(([name, title]) => (name + " " + title).toLowerCase().includes(text)) : null;
    return hosts.map((host, number) => {
      const here = !text || loweredHosts[number].includes(text);
      const found = [];
      host[5].forEach((row, i) => {
        const status = statuses[row[STATUS]];
        if (state.statuses.size ? !state.statuses.has(status) : !(PRESENT.has(status) || (state.ignored && status === "ignored"))) return;
        if (state.severities.size && !state.severities.has(row[SEVERITY])) return;
        if (state.check >= 0 && row[CHECK] !== state.check) return;
        if (state.station >= 0 && row[STATION] !== state.station) return;
        if (!here && !checked[row[CHECK]] && !named[row[CHAIN]] && !row[BOXES].some((box) => named[box])) return;
        found.push(i);
      });
      return found.length || (here && !narrowed()) ? found : null;
    });
  }

  // The list of hosts ---------------------------------------------------------------------------------------------

  const list = byId("hosts");
  const items = [...list.children].map((item) => ({ item, number: Number(item.dataset.host), button: item.firstElementChild }));

  function showHosts(found) {
    let left = 0;
    for (const { item, number, button } of items) {
      const hidden = found[number] === null;
      if (item.hidden !== hidden) item.hidden = hidden;
      left += hidden ? 0 : 1;
      if (number === state.host) button.setAttribute("aria-current", "true");
      else if (button.hasAttribute("aria-current")) button.removeAttribute("aria-current");
    }
    byId("nohosts").hidden = left > 0;
  }

  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) choose(Number(button.parentElement.dataset.host));
  });
  list.addEventListener("keydown", (event) => {
    const shown = items.filter(({ item }) => !item.hidden).map(({ button }) => button);
    const at = shown.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const next = shown[Math.max(0, Math.min(shown.length - 1, to))];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  });

  function choose(host) {
    state.host = host;
    state.station = -1;
    update(true);
    byId("results").focus({ preventScroll: true });
    byId("results").scrollIntoView({ block: "start" });
  }
  function back() {
    const before = state.host;
    state.host = -1;
    state.station = -1;
    update(true);
    const there = items.find(({ number }) => number === before);
    if (there && !there.item.hidden) {
      there.button.focus();
      there.button.scrollIntoView({ block: "nearest" });
    } else byId("results").focus();
  }

  // A finding -----------------------------------------------------------------------------------------------------

  const dot = (severity) => el("span", { class: "dot s-" + severity, "aria-hidden": "true" });
  const badge = (severity) => el("span", { class: "badge s-" + severity }, dot(severity), severity);

  function finding(host, row, detail, withHost) {
    const severity = severities[row[SEVERITY]];
    const status = statuses[row[STATUS]];
    const item = el("article", { class: "finding", "data-id": detail.id });
    const body = el("div", { class: "body", hidden: true });
    const fold = el(
      "button",
      { type: "button", class: "fold", "aria-expanded": "false" },
      el(
        "span",
        { class: "heads" },
        badge(severity),
        el("b", {}, checks[row[CHECK]][0]),
        withHost && el("span", { class: "where" }, "on ", bdi(hosts[host][0])),
        detail.place && el("span", { class: "where" }, detail.place),
        detail.certainty === "possible" && el("span", { class: "tag strong" }, "possible"),
        status && el("span", { class: "tag strong" }, el("span", { class: "glyph g-" + status, "aria-hidden": "true" }), STATUS_TEXTS[status]),
        row[UNMEANT] > 0 && el("span", { class: "tag" }, "\u2715 " + plural(row[UNMEANT], "container") + " not meant"),
      ),
      el("span", { class: "message" }, detail.message),
    );
    const open = (wanted) => {
      if (wanted && !body.firstChild) body.append(...bodyOf(row, detail));
      fold.setAttribute("aria-expanded", String(wanted));
      body.hidden = !wanted;
    };
    fold.addEventListener("click", () => open(body.hidden));
    item.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !body.hidden) {
        event.stopPropagation();
        open(false);
        fold.focus();
      }
    });
    item.open = open;
    item.append(el("h4", {}, fold), body);
    return item;
  }

  function bodyOf(row, detail) {
    const parts = [];
    const [, title, what, advice] = checks[row[CHECK]];
    if (detail.reasons.length) {
      parts.push(el("h5", {}, "This hangs on"), el("ul", {}, detail.reasons.map((reason) => el("li", {}, reason))));
    }
    if (detail.ignored !== null) parts.push(el("p", {}, el("b", {}, "Ignored because: "), detail.ignored));
    if (detail.rule) {
      parts.push(el("h5", {}, "The rule" + (detail.place ? ", " : ""), detail.place), el("code", { class: "rule" }, detail.rule));
    }
    if (detail.affected.length) parts.push(el("h5", {}, "Whom it hits"), blast(detail));
    if (detail.fix) parts.push(...fixOf(detail.fix));
    else parts.push(el("h5", {}, "What to do"), el("p", {}, advice || "Only people can tell here."));
    parts.push(el("p", { class: "quiet" }, title + ". " + what + " (" + detail.id + ")"));
    return parts;
  }

  /** The containers that are hit, drawn apart: those that were meant, and those that were not. */
  function blast(detail) {
    const groups = [
      ["unmeant", "\u2715 Not meant", detail.affected.filter((hit) => hit[6] === false)],
      ["meant", "\u2713 Meant", detail.affected.filter((hit) => hit[6] === true)],
      ["open", "\u2022 Touched", detail.affected.filter((hit) => hit[6] === null)],
    ].filter((group) => group[2].length);
    return el(
      "div",
      { class: "blast" },
      el("div", { class: "from" }, detail.place || "this host"),
      svg(
        "svg",
        { class: "arrow", viewBox: "0 0 40 24", preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("path", { class: "across", d: "M0 12H36M28 6l8 6-8 6" }),
        svg("path", { class: "down", d: "M20 0V20M14 13l6 8 6-8" }),
      ),
      el("div", { class: "groups" }, groups.map(([kind, title, hits]) => groupOf(kind, title, hits))),
    );
  }
  function groupOf(kind, title, hits) {
    const listed = el("ul", {}, hits.slice(0, LISTED).map(hitOf));
    const group = el("div", { class: "group " + kind }, el("p", {}, `${title} (${hits.length.toLocaleString("en")})`), listed);
    if (hits.length > LISTED) {
      const more = el("button", { type: "button", class: "link", onclick: () => (more.remove(), listed.append(...hits.slice(LISTED).map(hitOf))) });
      put(more, `Show ${(hits.length - LISTED).toLocaleString("en")} more`);
      group.append(more);
    }
    return group;
  }
  function hitOf([container, address, network, published, traffic, peers]) {
    const rest = [traffic === "published port" ? "" : traffic, peers && "for " + peers, address, network && "on " + network].filter(Boolean);
    return el("li", {}, bdi(container), published && " " + published, rest.length > 0 && el("small", {}, " " + rest.join(", ")));
  }

  function fixOf(fix) {
    const parts = [el("h5", {}, "The fix"), el("p", {}, fix.description)];
    for (const [title, who] of [["Who gains access by it", fix.gains], ["Who loses access by it", fix.loses]]) {
      if (who.length) parts.push(el("h5", {}, title), el("ul", { class: "who" }, who.map((line) => el("li", {}, "\u2022 " + line))));
    }
    if (fix.tasks) parts.push(copyable("As tasks for a playbook", "Copy tasks", fix.tasks));
    if (fix.commands) parts.push(copyable("As commands for a root shell, for today's addresses", "Copy commands", fix.commands));
    return parts;
  }

  function copyable(title, label, text) {
    const button = el("button", { type: "button", class: "plain" }, label);
    button.addEventListener("click", async () => {
      const done = await copy(text, button);
      button.textContent = done ? "Copied" : "Not copied: select it by hand";
      say(done ? "Copied." : "The browser did not allow copying.");
      setTimeout(() => (button.textContent = label), 2500);
    });
    return el(
      "div",
      { class: "copyable" },
      el("div", { class: "bar" }, el("span", {}, title), button),
      el("pre", { tabindex: "0", role: "region", "aria-label": title }, el("code", {}, text)),
    );
  }
  async function copy(text, button) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // A page from a file, or without the focus: the old way.
    }
    const area = el("textarea", { readonly: true, class: "aside", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    let done = false;
    try {
      done = document.execCommand("copy");
    } catch {
      done = false;
    }
    area.remove();
    button.focus();
    return done;
  }

  // The packet's way ----------------------------------------------------------------------------------------------

  const STATION_TEXTS = {
    prerouting: ["PREROUTING", "DNAT"],
    routing: ["Routing", "host or container?"],
    forward: ["FORWARD", "to containers"],
    docker_user: ["DOCKER-USER", "your rules"],
    docker_chains: ["Docker's chains", "published ports"],
    input: ["INPUT", "to the host"],
    proxy: ["docker-proxy", "serves on the host"],
    host: ["The host itself", "files, settings"],
  };
  const WIDE = {
    width: 984, height: 226,
    client: [2, 24, 66], prerouting: [90, 24, 112], routing: [224, 24, 126], forward: [372, 24, 102], docker_user: [496, 24, 124],
    docker_chains: [642, 24, 128], input: [224, 146, 126], proxy: [372, 146, 128], host: [74, 146, 128],
    boxes: (i) => [806, 31 + i * 52, 176],
    ways: [["client", "prerouting"], ["prerouting", "routing"], ["routing", "forward"], ["forward", "docker_user"], ["docker_user", "docker_chains"], ["input", "proxy"]],
  };
  const NARROW = {
    width: 340, height: 480,
    client: [60, 6, 150], prerouting: [60, 90, 150], routing: [60, 174, 150], forward: [2, 270, 154], docker_user: [2, 354, 154],
    docker_chains: [2, 438, 154], input: [178, 270, 150], proxy: [178, 354, 150], host: [178, 438, 150],
    boxes: (i) => [2, 522 + i * 52, 326],
    ways: [],
  };
  const HIGH = 58;

  const cut = (text, most) => {
    const chars = [...shownText(text)];
    return chars.length > most ? chars.slice(0, most - 1).join("") + "\u2026" : chars.join("");
  };

  /** Containers of findings, each once: not meant weighs more than meant, and that more than just touched. */
  function boxesOf(some) {
    const boxes = new Map();
    for (const detail of some) {
      for (const [container, , , published, traffic, , meant] of detail.affected) {
        const key = container + "\0" + published;
        const rank = meant === false ? 2 : meant === true ? 1 : 0;
        const before = boxes.get(key);
        if (!before || before.rank < rank) boxes.set(key, { container, published: published || traffic, rank });
      }
    }
    return [...boxes.values()].sort((a, b) => b.rank - a.rank);
  }

  function drawing(host, rows, some) {
    const narrow = matchMedia("(max-width: 640px)").matches;
    const at = narrow ? NARROW : WIDE;
    const boxes = boxesOf(some);
    const drawn = boxes.slice(0, boxes.length > DRAWN ? DRAWN - 1 : DRAWN);
    const [left, top] = at.boxes(0);
    const height = Math.max(at.height, at.boxes(Math.max(1, boxes.length > drawn.length ? drawn.length + 1 : drawn.length))[1] + 4);
    const picture = svg(
      "svg",
      { class: "path", viewBox: `0 0 ${at.width} ${height}`, role: "group", "aria-label": "The way of a connection on this host, and where findings are" },
      svg("defs", {}, svg("pattern", { id: "hatch", width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, svg("path", { class: "hatch", d: "M0 0V8" }))),
    );
    const line = (d, kind) => picture.append(svg("path", { class: "way " + (kind || ""), d }));
    const tip = (x, y, down) => picture.append(svg("path", { class: "tip", d: down ? `M${x - 5} ${y - 8}h10l-5 8z` : `M${x - 8} ${y - 5}v10l8-5z` }));
    const centre = (name) => at[name][0] + at[name][2] / 2;
    if (narrow) {
      for (const [from, to] of [["client", "prerouting"], ["prerouting", "routing"], ["forward", "docker_user"], ["docker_user", "docker_chains"], ["input", "proxy"]]) {
        line(`M${centre(from)} ${at[from][1] + HIGH}V${at[to][1] - 2}`);
        tip(centre(to), at[to][1], true);
      }
      for (const to of ["forward", "input"]) {
        line(`M${centre("routing")} ${at.routing[1] + HIGH}v14H${centre(to)}V${at[to][1] - 2}`);
        tip(centre(to), at[to][1], true);
      }
      line(`M${centre("docker_chains")} ${at.docker_chains[1] + HIGH}V${top - 2}`);
      tip(centre("docker_chains"), top, true);
    } else {
      for (const [from, to] of at.ways) {
        const y = at[from][1] + HIGH / 2;
        line(`M${at[from][0] + at[from][2]} ${y}H${at[to][0] - 2}`);
        tip(at[to][0], y);
      }
      line(`M${centre("routing")} ${at.routing[1] + HIGH}V${at.input[1] - 2}`);
      tip(centre("input"), at.input[1], true);
      const from = at.docker_chains[0] + at.docker_chains[2];
      drawn.forEach((_, i) => {
        const y = at.boxes(i)[1] + 22;
        line(`M${from} ${at.docker_chains[1] + HIGH / 2}H${left - 20}V${y}H${left - 2}`);
        tip(left, y);
      });
      const y = at.proxy[1] + HIGH / 2;
      if (drawn.length) line(`M${at.proxy[0] + at.proxy[2]} ${y}H${left - 10}V${at.boxes(drawn.length - 1)[1] + 32}H${left - 2}`, "side");
    }
    const client = at.client;
    picture.append(
      svg("g", {}, svg("rect", { class: "box", x: client[0], y: client[1], width: client[2], height: HIGH, rx: 29 }), svg("text", { x: client[0] + client[2] / 2, y: client[1] + 34, "text-anchor": "middle" }, "Client")),
    );
    stations.forEach((name, number) => picture.append(stationOf(name, number, at[name], rows)));
    drawn.forEach((box, i) => picture.append(boxOf(box, at.boxes(i))));
    const [x, y, width] = at.boxes(drawn.length);
    const more = boxes.length ? boxes.length - drawn.length && `and ${(boxes.length - drawn.length).toLocaleString("en")} more` : "no container is hit";
    if (more) picture.append(svg("text", { class: "sub", x: x + width / 2, y: y + 26, "text-anchor": "middle" }, more));
    return picture;
  }

  function stationOf(name, number, [x, y, width], rows) {
    const here = rows.filter((row) => row[STATION] === number);
    const worst = here.length ? severities[Math.max(...here.map((row) => row[SEVERITY]))] : "";
    const [title, sub] = STATION_TEXTS[name];
    const label = here.length ? `${title}: ${plural(here.length, "finding")}, the worst ${worst}. Show only these` : `${title}: nothing was found`;
    const toggle = (event) => {
      event.preventDefault();
      state.station = state.station === number ? -1 : number;
      update(false).then(() => {
        const again = document.querySelector(`.station[data-station="${name}"]`);
        if (again) again.focus();
      });
    };
    const pressed = state.station === number;
    const node = svg("g", { class: "station" + (here.length ? " found s-" + worst : ""), "data-station": name });
    if (here.length || pressed) {
      fill(node, {
        role: "button", tabindex: 0, "aria-pressed": String(pressed), "aria-label": label, onclick: toggle,
        onkeydown: (event) => (event.key === "Enter" || event.key === " ") && toggle(event),
      }, []);
    } else fill(node, { role: "img", "aria-label": label }, []);
    node.append(
      svg("rect", { class: "ring", x: x - 5, y: y - 5, width: width + 10, height: HIGH + 10, rx: 11 }),
      svg("rect", { class: "box", x, y, width, height: HIGH, rx: 7 }),
      svg("text", { class: "title", x: x + width / 2, y: y + 26, "text-anchor": "middle" }, title),
      svg("text", { class: "sub", x: x + width / 2, y: y + 44, "text-anchor": "middle" }, here.length ? "worst: " + worst : sub),
    );
    if (here.length) {
      const wide = 22 + 7 * (String(here.length).length - 1);
      node.append(
        svg("rect", { class: "count", x: x + width - wide + 8, y: y - 10, width: wide, height: 22, rx: 11 }),
        svg("text", { class: "figure", x: x + width - wide / 2 + 8, y: y + 5.5 }, String(here.length)),
      );
    }
    return node;
  }

  function boxOf({ container, published, rank }, [x, y, width]) {
    const kind = ["open", "meant", "unmeant"][rank];
    const mark = ["\u2022", "\u2713", "\u2715"][rank];
    const text = ["touched", "meant", "not meant"][rank];
    const shape = { x, y, width, height: 44, rx: rank === 2 ? 2 : 7 };
    return svg(
      "g",
      { class: "container " + kind, role: "img", "aria-label": `${shownText(container)}, ${published}: ${text}` },
      svg("title", {}, `${container} ${published}: ${text}`),
      svg("rect", { class: "box", ...shape }),
      rank === 2 && svg("rect", { ...shape, fill: "url(#hatch)" }),
      svg("text", { class: "mark", x: x + 9, y: y + 19 }, mark),
      svg("text", { x: x + 25, y: y + 19 }, cut(container, width > 200 ? 40 : 18)),
      svg("text", { class: "sub", x: x + 9, y: y + 36 }, cut(text + ", " + published, width > 200 ? 48 : 25)),
    );
  }

  // Views ---------------------------------------------------------------------------------------------------------

  const say = (text) => (byId("said").textContent = text);
  let turn = 0;

  async function update(remember) {
    const mine = ++turn;
    const found = matching();
    showHosts(found);
    controls();
    address(remember);
    document.body.classList.toggle("one-host", state.host >= 0);
    const all = state.host >= 0 ? [state.host] : found.map((_, number) => number);
    const pairs = all.flatMap((number) => (found[number] || []).map((i) => [number, i]));
    const row = ([number, i]) => hosts[number][5][i];
    pairs.sort((a, b) => row(b)[SEVERITY] - row(a)[SEVERITY] || row(a)[CHECK] - row(b)[CHECK] || a[0] - b[0] || a[1] - b[1]);
    const many = new Set(pairs.map(([number]) => number)).size;
    say(pairs.length ? `${plural(pairs.length, "finding")} on ${plural(many, "host")}.` : "No finding is left by these filters.");
    const parts = state.host >= 0 ? await hostView(found, pairs) : await fleetView(pairs);
    if (mine !== turn) return;
    byId("results").replaceChildren(...parts);
  }

  async function listOf(pairs, withHost) {
    const card = el("section", { class: "card" }, el("h3", {}, withHost ? "Findings" : `Findings (${pairs.length.toLocaleString("en")})`));
    let shown = 0;
    const more = el("button", { type: "button", class: "plain more" });
    const add = async () => {
      const next = pairs.slice(shown, shown + PAGE);
      const some = await Promise.all(next.map(([number]) => details(number)));
      const made = next.map(([number, i], n) => finding(number, hosts[number][5][i], some[n][i], withHost));
      shown += next.length;
      more.remove();
      card.append(...made);
      if (shown < pairs.length) {
        more.textContent = `Show ${Math.min(PAGE, pairs.length - shown)} more of ${(pairs.length - shown).toLocaleString("en")}`;
        card.append(more);
      }
      return made;
    };
    more.addEventListener("click", async () => (await add())[0].querySelector("button").focus());
    await add();
    if (!pairs.length) card.append(el("p", { class: "pad quiet" }, "Nothing to show."));
    return card;
  }

  async function fleetView(pairs) {
    const groups = new Map();
    for (const [number, i] of pairs) {
      const row = hosts[number][5][i];
      const group = groups.get(row[CHECK]) || { worst: 0, count: 0, hosts: new Set(), unmeant: 0 };
      group.worst = Math.max(group.worst, row[SEVERITY]);
      group.count += 1;
      group.hosts.add(number);
      group.unmeant += row[UNMEANT];
      groups.set(row[CHECK], group);
    }
    const sorted = [...groups].sort((a, b) => b[1].worst - a[1].worst || b[1].count - a[1].count || a[0] - b[0]);
    const lines = sorted.map(([check, group]) =>
      el(
        "tr",
        {},
        el("td", {}, badge(severities[group.worst])),
        el("td", {}, el("button", { type: "button", class: "link", onclick: () => pick(check) }, checks[check][1]), el("span", { class: "quiet" }, checks[check][0])),
        el("td", { class: "num" }, group.count.toLocaleString("en")),
        el("td", { class: "num" }, group.hosts.size.toLocaleString("en")),
        el("td", { class: "num wideonly" }, group.unmeant ? "\u2715 " + group.unmeant.toLocaleString("en") : ""),
      ),
    );
    const table = el(
      "table",
      { class: "overview" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Worst"), el("th", { scope: "col" }, "Check"), el("th", { scope: "col", class: "num" }, "Findings"), el("th", { scope: "col", class: "num" }, "Hosts"), el("th", { scope: "col", class: "num wideonly" }, "Hit, not meant"))),
      el("tbody", {}, lines),
    );
    const parts = [el("h2", {}, "All hosts")];
    if (pairs.length) parts.push(el("section", { class: "card" }, el("h3", {}, "By check"), table));
    parts.push(await listOf(pairs, true));
    return parts;
  }
  function pick(check) {
    state.check = state.check === check ? -1 : check;
    update(false).then(() => byId("results").focus({ preventScroll: true }));
  }

  async function hostView(found, pairs) {
    const [name, judged, message, , , rows] = hosts[state.host];
    const parts = [el("h2", {}, bdi(name), el("button", { type: "button", class: "plain", id: "back", onclick: back }, "\u2190 All hosts"))];
    if (judged !== "judged") {
      parts.push(el("p", { class: "card hostmessage" }, el("b", {}, judged === "unreachable" ? "Not reached: " : "The audit failed: "), message));
    }
    const some = await details(state.host);
    // The drawing shows what the other filters leave, and every station of it, so that one can go from station to station.
    const station = state.station;
    state.station = -1;
    const here = matching()[state.host] || [];
    state.station = station;
    if (judged === "judged" || here.length) {
      const drawn = station >= 0 ? here.filter((i) => rows[i][STATION] === station) : here;
      parts.push(
        el(
          "section",
          { class: "card" },
          el("h3", {}, "The way of a connection"),
          el("div", { class: "pad" }, drawing(state.host, here.map((i) => rows[i]), drawn.map((i) => some[i]))),
          el(
            "p",
            { class: "legend" },
            el("span", {}, el("b", {}, "\u2715 not meant"), ": dashed and hatched"),
            el("span", {}, el("b", {}, "\u2713 meant"), ": a plain frame"),
            el("span", {}, el("b", {}, "\u2022 touched"), ": meant or not is no question"),
            station >= 0 && el("button", { type: "button", class: "link", onclick: () => ((state.station = -1), update(false)) }, "Show findings of the whole way"),
          ),
        ),
      );
    }
    parts.push(await listOf(pairs, false));
    return parts;
  }

  // Controls ------------------------------------------------------------------------------------------------------

  const selects = { check: byId("check"), host: byId("hostpick") };
  checks.map(([name], number) => [name, number]).sort((a, b) => (a[0] < b[0] ? -1 : 1)).forEach(([name, number]) => selects.check.append(el("option", { value: number }, name)));
  selects.host.append(...hosts.map(([name], number) => el("option", { value: number }, cut(name, 60))));
  selects.check.addEventListener("change", () => ((state.check = selects.check.value === "" ? -1 : Number(selects.check.value)), update(false)));
  selects.host.addEventListener("change", () => ((state.host = selects.host.value === "" ? -1 : Number(selects.host.value)), (state.station = -1), update(true)));

  const ignored = hosts.reduce((sum, host) => sum + host[5].filter((row) => statuses[row[STATUS]] === "ignored").length, 0);
  const ignoring = el("input", { type: "checkbox", id: "ignored" });
  if (ignored) {
    const field = el("div", { class: "field" }, el("label", {}, ignoring, `with ${plural(ignored, "ignored finding")}`));
    byId("reset").parentElement.before(field);
    ignoring.addEventListener("change", () => ((state.ignored = ignoring.checked), update(false)));
  }

  let waiting = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => ((state.text = byId("search").value), update(false)), 120);
  });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && byId("search").value) {
      event.preventDefault();
      event.stopPropagation();
      byId("search").value = state.text = "";
      update(false);
    }
  });
  const toggle = (some, value) => (some.has(value) ? some.delete(value) : some.add(value), update(false));
  const tiles = [...document.querySelectorAll("[data-severity]")];
  const chips = [...document.querySelectorAll("[data-status]")];
  tiles.forEach((tile) => tile.addEventListener("click", () => toggle(state.severities, severities.indexOf(tile.dataset.severity))));
  chips.forEach((chip) => chip.addEventListener("click", () => toggle(state.statuses, chip.dataset.status)));
  byId("reset").addEventListener("click", () => {
    Object.assign(state, { severities: new Set(), statuses: new Set(), check: -1, station: -1, text: "", ignored: false });
    byId("search").value = "";
    update(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.host >= 0 && !event.defaultPrevented && !/^(INPUT|SELECT)$/.test(event.target.tagName)) back();
  });

  function controls() {
    tiles.forEach((tile) => tile.setAttribute("aria-pressed", String(state.severities.has(severities.indexOf(tile.dataset.severity)))));
    chips.forEach((chip) => chip.setAttribute("aria-pressed", String(state.statuses.has(chip.dataset.status))));
    selects.check.value = state.check < 0 ? "" : String(state.check);
    selects.host.value = state.host < 0 ? "" : String(state.host);
    ignoring.checked = state.ignored;
  }

  // The address has the view, so that it can be kept, passed on, and left with the browser's Back ------------------------

  let written = "";
  function address(remember) {
    const words = new URLSearchParams();
    if (state.host >= 0) words.set("host", hosts[state.host][0]);
    if (state.check >= 0) words.set("check", checks[state.check][0]);
    if (state.severities.size) words.set("severity", [...state.severities].map((number) => severities[number]).join(","));
    if (state.statuses.size) words.set("status", [...state.statuses].join(","));
    if (state.text) words.set("search", state.text);
    written = words.size ? "#" + words : "#";
    const now = location.hash || "#";
    if (now === written) return;
    try {
      history[remember ? "pushState" : "replaceState"](null, "", written);
    } catch {
      // Some browsers keep the address of a file as it is.
    }
  }
  function fromAddress() {
    const words = new URLSearchParams(location.hash.slice(1));
    state.host = hosts.findIndex((host) => host[0] === words.get("host"));
    state.check = checks.findIndex((check) => check[0] === words.get("check"));
    state.severities = new Set((words.get("severity") || "").split(",").map((name) => severities.indexOf(name)).filter((number) => number >= 0));
    state.statuses = new Set((words.get("status") || "").split(",").filter((name) => statuses.includes(name) && name));
    state.text = byId("search").value = words.get("search") || "";
    state.station = -1;
  }
  addEventListener("popstate", () => {
    if ((location.hash || "#") === written || location.hash === "#results") return;
    fromAddress();
    update(false);
  });
  matchMedia("(max-width: 640px)").addEventListener("change", () => state.host >= 0 && update(false));
  // On paper everything that is listed is open.
  addEventListener("beforeprint", () => document.querySelectorAll(".finding").forEach((item) => item.open(true)));

  if (typeof DecompressionStream === "undefined") {
    byId("results").append(el("p", { class: "notice" }, "This browser is too old to unpack the findings: take one of 2023 or later, or read audit.jsonl beside this file."));
    return;
  }
  fromAddress();
  update(false).then(() => document.documentElement.setAttribute("data-ready", ""));
})();
