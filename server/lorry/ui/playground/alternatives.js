// What might have stood in a token's place: a box beside the token, one for the page.

import { html, render } from "../html.js";

const ID = "alternatives";
let box = null;

/** Shows the alternatives of a token beside its element. */
export function show(element, token) {
  if (!token) return;
  box ??= made();
  const home = element.closest("main");
  if (box.parentNode !== home) home.append(box);
  render(html`<${Alternatives} token=${token} />`, box);
  box.hidden = false;
  document.querySelector(`[aria-describedby="${ID}"]`)?.removeAttribute("aria-describedby");
  element.setAttribute("aria-describedby", ID);
  const { left, top, bottom } = element.getBoundingClientRect();
  const room = document.documentElement.clientWidth - box.offsetWidth - 8;
  box.style.left = `${Math.max(8, Math.min(left, room))}px`;
  const below = bottom + 6 + box.offsetHeight < innerHeight;
  box.style.top = `${below ? bottom + 6 : Math.max(8, top - box.offsetHeight - 6)}px`;
}

export function hide() {
  if (box) box.hidden = true;
}

function made() {
  const element = document.createElement("div");
  element.id = ID;
  element.setAttribute("role", "tooltip");
  element.hidden = true;
  addEventListener("scroll", hide, { capture: true, passive: true });
  return element;
}

function Alternatives({ token }) {
  const others = token.others.toSorted((a, b) => b.logprob - a.logprob);
  const rank = others.findIndex(({ logprob }) => logprob === token.logprob);
  return html`
    <table>
      <caption>
        ${rank < 0 ? "Not among the likeliest" : `Choice ${rank + 1}`} · log-probability ${token.logprob.toFixed(2)}
      </caption>
      <tbody>
        ${others.map(
          ({ text, logprob }, at) => html`
            <tr class=${at === rank ? "chosen" : undefined}>
              <th scope="row">${visible(text)}</th>
              <td>${percent(logprob)}</td>
              <td aria-hidden="true"><span class="bar" style=${{ width: `${6 * Math.exp(logprob)}rem` }} /></td>
            </tr>
          `,
        )}
      </tbody>
    </table>
  `;
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share < 0.1 ? "< 0.1 %" : `${share.toFixed(1)} %`;
}

/** Spaces and line ends as signs: most tokens begin with one. */
function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "(nothing)";
}
