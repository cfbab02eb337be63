// Something that the server is asked to do, and its refusal beside the control that asked.

import { html, useRef, useState } from "../html.js";

/** Returns `{ run, busy, error, done }`. `run(work)` resolves to whether it succeeded. */
export function useAction() {
  const [state, setState] = useState({ busy: false, error: null, done: false });
  const latest = useRef(0);
  const run = async (work) => {
    const mine = (latest.current += 1);
    setState({ busy: true, error: null, done: false });
    try {
      await work();
      if (mine === latest.current) setState({ busy: false, error: null, done: true });
      return true;
    } catch (error) {
      if (mine === latest.current) setState({ busy: false, error, done: false });
      return false;
    }
  };
  return { ...state, run };
}

/** All that an error says. */
export function Refusal({ error }) {
  if (!error) return null;
  const problems = (error.problems ?? []).filter((problem) => problem !== error.message);
  return html`
    <div class="refusal" role="alert">
      <p>${error.message}</p>
      ${problems.length > 0 && html`<ul>${problems.map((problem) => html`<li>${problem}</li>`)}</ul>`}
    </div>
  `;
}
