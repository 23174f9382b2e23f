// The dialog in which a LoRA is chosen: search as you type, with its picture and what its header tells.

import { element, split } from "../page/dom.js"
import { word } from "../page/words.js"
import { find, listen, loras, pictureUrl, refresh } from "./library.js"

const SHOWN = 200

/** The name of the file that was chosen, or null. `current` is the one that is chosen so far. */
export function choose(current) {
  return new Promise((resolve) => new Picker(current, resolve).open())
}

class Picker {
  constructor(current, resolve) {
    this.resolve = resolve
    this.current = find(current)?.name
    this.selected = this.current
    this.search = element("input", {
      type: "search", className: "loom-search", placeholder: word("Search names, trigger words, models"),
      autocomplete: "off", spellcheck: false, role: "combobox", "aria-label": word("Search LoRAs"), "aria-expanded": "true",
      "aria-controls": "loom-options",
    })
    this.options = element("div", { className: "loom-options", id: "loom-options", role: "listbox", "aria-label": word("LoRAs") })
    this.count = element("div", { className: "loom-count", role: "status" })
    this.detail = element("div", { className: "loom-detail" })
    this.dialog = element("dialog", { className: "loom loom-picker", "aria-label": word("Choose a LoRA") },
      element("div", { className: "loom-find" }, this.search, this.count),
      element("div", { className: "loom-panes" }, this.options, this.detail))
    this.search.addEventListener("input", () => this.filter(true))
    this.dialog.addEventListener("keydown", (event) => this.key(event))
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.close(null))
    this.dialog.addEventListener("close", () => this.close(null))
    for (const kind of ["paste", "copy", "wheel"]) this.dialog.addEventListener(kind, (event) => event.stopPropagation())
  }

  open() {
    document.body.append(this.dialog)
    this.stop = listen(() => this.filter(false))
    this.filter(false)
    this.dialog.showModal()
    this.search.focus()
    this.scroll()
    refresh()
  }

  close(name) {
    this.stop()
    this.dialog.remove()
    this.resolve(name)
  }

  key(event) {
    event.stopPropagation()
    const page = Math.max(1, Math.floor(this.options.clientHeight / 34))
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page }[event.key]
    if (step) {
      event.preventDefault()
      this.step(step)
    } else if (event.key === "Escape" || (event.key === "Enter" && this.selected)) {
      event.preventDefault()
      this.close(event.key === "Enter" ? this.selected : null)
    }
  }

  step(by) {
    const at = this.found.findIndex((lora) => lora.name === this.selected)
    const next = this.found[Math.max(0, Math.min(this.found.length - 1, at + by))]
    if (next) this.select(next.name)
    this.scroll()
  }

  /** Lists what the search finds. A new search selects its first. */
  filter(anew) {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean)
    const all = loras().map((lora) => [score(lora, words), lora]).filter(([points]) => points > 0)
    all.sort(([a], [b]) => b - a)
    this.found = all.slice(0, SHOWN).map(([, lora]) => lora)
    this.count.textContent = all.length > SHOWN ? word("{shown} of {all}", { shown: SHOWN, all: all.length }) : `${all.length}`
    if (anew || !this.found.some((lora) => lora.name === this.selected)) this.selected = this.found[0]?.name
    const why = loras().length ? word("Nothing found.") : word("There is no LoRA in the loras folders.")
    const nothing = element("div", { className: "loom-empty" }, why)
    this.options.replaceChildren(...(this.found.length ? this.found.map((lora, index) => this.option(lora, index)) : [nothing]))
    this.select(this.selected)
    if (anew) this.options.scrollTop = 0
  }

  option(lora, index) {
    const [folder, bare] = split(lora.name)
    const made = element("div", { className: "loom-option", id: `loom-option-${index}`, role: "option" },
      element("div", { className: "loom-line" },
        element("span", { className: "loom-bare" }, bare), element("span", { className: "loom-folder" }, folder.replace(/\/$/, ""))),
      element("div", { className: "loom-line loom-dim" },
        element("span", { className: "loom-grow" }, lora.words?.join(", ") || lora.title || ""),
        element("span", {}, lora.family ?? "")))
    made.classList.toggle("loom-broken", Boolean(lora.fault))
    made.classList.toggle("loom-current", lora.name === this.current)
    made.addEventListener("pointermove", () => lora.name !== this.selected && this.select(lora.name))
    made.addEventListener("click", () => this.close(lora.name))
    return made
  }

  select(name) {
    this.selected = name
    const index = this.found.findIndex((lora) => lora.name === name)
    ;[...this.options.children].forEach((option, at) => option.setAttribute("aria-selected", String(at === index)))
    this.search.setAttribute("aria-activedescendant", index < 0 ? "" : `loom-option-${index}`)
    this.describe(this.found[index])
  }

  scroll() {
    this.options.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" })
  }

  describe(lora) {
    if (!lora) return this.detail.replaceChildren()
    const picture = lora.picture
      ? element("img", { className: "loom-picture", alt: "", src: pictureUrl(lora) })
      : element("div", { className: "loom-picture loom-none" }, word("no preview"))
    const words = (lora.words ?? []).map((word) => element("span", { className: "loom-word" }, word))
    const [folder, bare] = split(lora.name)
    const lines = [
      [word("Model"), lora.family], [word("Author"), lora.author], [word("Licence"), lora.license], [word("Hint"), lora.hint],
      [word("Folder"), folder],
    ]
    this.detail.replaceChildren(
      picture,
      element("div", { className: "loom-title" }, lora.title || bare),
      element("div", { className: "loom-words" }, ...words),
      ...lines.filter(([, value]) => value).map(([key, value]) =>
        element("div", { className: "loom-fact" }, element("span", { className: "loom-dim" }, key), element("span", {}, value))),
      ...(lora.fault ? [element("div", { className: "loom-fault" }, lora.fault)] : []),
    )
  }
}

/** 0 when a word is not found; more where the file's own name has it. */
function score(lora, words) {
  const bare = split(lora.name)[1].toLowerCase()
  const rest = [lora.name, lora.title, lora.family, ...(lora.words ?? [])].filter(Boolean).join("\n").toLowerCase()
  let points = 1
  for (const word of words) {
    if (!rest.includes(word)) return 0
    points += bare.startsWith(word) ? 3 : bare.includes(word) ? 2 : 0
  }
  return points
}
