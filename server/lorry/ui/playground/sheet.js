// A long text in the document: only ever appended to, in blocks, so that 20,000 tokens stay light.
//
// A browser lays a paragraph out as a whole; blocks that are full are not laid out again, and those
// out of sight not at all (`content-visibility`).

const ENOUGH = 1000; // characters after which a line's end ends a block
const MOST = 6000; // characters after which it ends anyway

export class Sheet {
  #root;
  #block = null;
  #length = 0;
  #last = "";

  constructor(root) {
    this.#root = root;
  }

  clear() {
    this.#root.replaceChildren();
    this.#block = null;
  }

  /** Appends text: within an element of its own, or as it is. */
  add(text, element = null) {
    if (!text) return;
    const full = this.#length > MOST || (this.#length > ENOUGH && this.#last.endsWith("\n"));
    if (!this.#block || full) {
      this.#block?.classList.add("full");
      this.#block = document.createElement("div");
      this.#block.className = "block";
      this.#root.append(this.#block);
      this.#length = 0;
    }
    this.#length += text.length;
    this.#last = text;
    if (element) {
      element.textContent = text;
      this.#block.append(element);
    } else if (this.#block.lastChild?.nodeType === Node.TEXT_NODE) {
      this.#block.lastChild.appendData(text);
    } else {
      this.#block.append(text);
    }
  }
}

/** Returns text in pieces that end with a line or have at most 1,000 characters. */
export function pieces(text) {
  return text.match(/[^\n]{1,1000}\n?|\n/gu) ?? [];
}
