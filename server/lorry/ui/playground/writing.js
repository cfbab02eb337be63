// An answer's text on the page: it grows with the answer, is coloured by token, or has its differences marked.

import { effect, html, useEffect, useRef } from "../html.js";
import { hide, show } from "./alternatives.js";
import { colours, differences as marking } from "./comparison.js";
import { differences } from "./differences.js";
import { Sheet, pieces } from "./sheet.js";

const AT_ONCE = 2000; // pieces appended in one frame
const LEVELS = [0.9, 0.5, 0.2, 0.05, 0.01]; // probabilities; the class is the count of those above a token's

export function Writing({ answer, base, label }) {
  const root = useRef(null);
  useEffect(() => written(root.current, answer, base), [answer, base]);
  return html`<div class="writing" ref=${root} role="group" aria-label=${label}></div>`;
}

/** Keeps `root` the text of `answer` until the function that it returns is called. */
function written(root, answer, base) {
  const sheet = new Sheet(root);
  let pouring = 0;
  const finish = effect(() => {
    const tokens = colours.value && answer.body.logprobs !== undefined;
    const marked = marking.value && base && answer.ended.value && base.ended.value;
    cancelAnimationFrame(pouring);
    sheet.clear();
    const source = tokens ? new Tokens(answer) : new Text(answer);
    const ranges = marked ? differences(shown(base, tokens), shown(answer, tokens)) : [];
    const pour = () => {
      pouring = 0;
      const stay = followed(root);
      let left = AT_ONCE;
      while (left && source.add(sheet, ranges)) left -= 1;
      stay();
      if (!left) pouring = requestAnimationFrame(pour);
    };
    const more = effect(() => {
      answer.seen.value;
      if (!pouring) pour();
    });
    return more;
  });
  const leave = answer.body.logprobs === undefined ? () => {} : explored(root, answer);
  return () => {
    cancelAnimationFrame(pouring);
    finish();
    leave();
  };
}

function shown(answer, tokens) {
  return tokens && answer.body.logprobs !== undefined ? answer.tokens.map(({ text }) => text).join("") : answer.text;
}

/** The text as it came. */
class Text {
  #at = 0;
  #queue = [];
  #range = 0;

  constructor(answer) {
    this.answer = answer;
  }

  /** Appends the next piece. Returns whether there was one. */
  add(sheet, ranges) {
    if (!this.#queue.length) this.#queue = pieces(this.answer.text.slice(this.#at)).reverse();
    const piece = this.#queue.pop();
    if (!piece) return false;
    const end = this.#at + piece.length;
    while (this.#at < end) {
      while (this.#range < ranges.length && ranges[this.#range][1] <= this.#at) this.#range += 1;
      const [from, to] = ranges[this.#range] ?? [end, end];
      const inside = from <= this.#at;
      const next = Math.min(end, inside ? to : from);
      const text = piece.slice(piece.length - end + this.#at, piece.length - end + next);
      sheet.add(text, inside ? document.createElement("mark") : null);
      this.#at = next;
    }
    return true;
  }
}

/** One element for each token that shows something: the first bytes of a character do not. */
class Tokens {
  #next = 0;
  #at = 0;
  #range = 0;

  constructor(answer) {
    this.answer = answer;
  }

  add(sheet, ranges) {
    const token = this.answer.tokens[this.#next];
    if (!token) return false;
    const element = document.createElement("span");
    element.className = `token level-${level(token.logprob)}`;
    element.dataset.at = this.#next;
    if (token.text && !this.#at) element.tabIndex = 0;
    const end = this.#at + token.text.length;
    while (this.#range < ranges.length && ranges[this.#range][1] <= this.#at) this.#range += 1;
    if (ranges[this.#range]?.[0] < end) element.classList.add("differs");
    sheet.add(token.text, element);
    this.#next += 1;
    this.#at = end;
    return true;
  }
}

function level(logprob) {
  const probability = Math.exp(logprob);
  return LEVELS.filter((limit) => probability < limit).length;
}

/** Stays at the end of what is scrolled, if that is where the reader was. */
function followed(root) {
  const box = root.closest(".answers");
  const follows = box && box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  return () => {
    if (follows) box.scrollTop = box.scrollHeight;
  };
}

const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity };

/** Shows a token's alternatives under the mouse, and for the arrow keys: the text is one tab stop. */
function explored(root, answer) {
  const tokenAt = (event) => event.target.closest?.(".token");
  const tell = (event) => {
    const element = tokenAt(event);
    if (element) show(element, answer.tokens[element.dataset.at]);
  };
  const move = (event) => {
    const element = tokenAt(event);
    if (event.key === "Escape") hide();
    if (!element || !(event.key in STEPS) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const step = STEPS[event.key];
    const all = root.getElementsByClassName("token");
    let at = Array.prototype.indexOf.call(all, element) + step;
    at = Math.max(0, Math.min(all.length - 1, at));
    element.tabIndex = -1;
    all[at].tabIndex = 0;
    all[at].focus();
  };
  const on = { pointerover: tell, focusin: tell, pointerleave: hide, focusout: hide, keydown: move };
  for (const [name, listener] of Object.entries(on)) root.addEventListener(name, listener);
  return () => {
    hide();
    for (const [name, listener] of Object.entries(on)) root.removeEventListener(name, listener);
  };
}
