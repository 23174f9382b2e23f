// What is known of one LoRA, beside the list.

import { copy } from "../page/clipboard.js"
import { element, split } from "../page/dom.js"
import { icon } from "./icons.js"
import { isFavourite } from "./kept.js"
import { pictureUrl } from "./library.js"
import { language, spoken, word } from "../page/words.js"

const UNITS = ["B", "KB", "MB", "GB"]

/** The pane; `actions` are functions of the LoRA: `pick`, `turn` (a favourite or not) and `add`, which may be missing. */
export class Detail {
  constructor(actions, say) {
    Object.assign(this, { actions, say })
    this.element = element("div", { className: "loom-detail", role: "region", "aria-label": word("About this LoRA") })
  }

  show(lora) {
    const key = lora && JSON.stringify([lora, isFavourite(lora)])
    if (key === this.shown) return // what is read there stays where it is while the list is told more
    this.shown = key
    const bare = lora && split(lora.name)[1]
    this.element.replaceChildren(...(lora ? [
      this.picture(lora),
      element("div", { className: "loom-title" }, lora.title || bare),
      ...(lora.title && lora.title !== bare ? [element("div", { className: "loom-dim" }, bare)] : []),
      this.buttons(lora, bare), ...fault(lora), ...this.words(lora), ...notes(lora), ...facts(lora),
    ] : []))
    this.element.scrollTop = 0
  }

  picture(lora) {
    if (!lora.picture) return element("div", { className: "loom-picture loom-none" }, word("no preview"))
    const made = element("img", { className: "loom-picture", alt: "", src: pictureUrl(lora) })
    made.addEventListener("error", () => made.replaceWith(element("div", { className: "loom-picture loom-none" }, word("no preview"))))
    return made
  }

  buttons(lora, bare) {
    const on = isFavourite(lora)
    const star = element("button", {
      type: "button", className: "loom-button loom-star", "aria-pressed": String(on), "aria-label": word("{name} is a favourite", { name: bare }),
      title: on ? word("No favourite any more (F)") : word("Make it a favourite (F)"),
    }, icon("star", on))
    star.addEventListener("click", () => this.actions.turn(lora))
    const pick = button("loom-button loom-main", word("Choose"), () => this.actions.pick(lora))
    const add = this.actions.add && button("loom-button", word("Add and stay"), () => this.actions.add(lora))
    return element("div", { className: "loom-buttons" }, pick, ...(add ? [add] : []), star)
  }

  /** A click copies; all of them by a button of their own. */
  words(lora) {
    const words = lora.words ?? []
    if (!words.length) return []
    const chips = words.map((trigger) => {
      const chip = button("loom-word", trigger, () => this.copied(trigger))
      chip.title = word("Copy")
      return chip
    })
    const every = words.length > 1 ? [button("loom-link", word("Copy all"), () => this.copied(words.join(", ")))] : []
    return [heading(word("Trigger words"), lora.source?.words, ...every), element("div", { className: "loom-words" }, ...chips)]
  }

  async copied(text) {
    const copied = await copy(text, this.element)
    this.say(copied ? word("Copied: {text}", { text }) : word("The browser does not allow copying; select the text instead"))
  }
}

function button(className, text, action) {
  const made = element("button", { type: "button", className }, text)
  made.addEventListener("click", action)
  return made
}

function heading(text, source, ...more) {
  return element("div", { className: "loom-heading" }, element("span", {}, text), from(source), ...more)
}

/** Which program's file says so, for what does not stand in the LoRA itself. */
function from(source) {
  return element("span", { className: "loom-from" }, source ? word("from {source}", { source }) : "")
}

function fault({ fault: words }) {
  return words ? [element("div", { className: "loom-fault loom-boxed" }, icon("broken"), element("span", {}, spoken(words)))] : []
}

function notes({ notes: text, source }) {
  return text ? [heading(word("Notes"), source?.notes), element("div", { className: "loom-notes" }, text)] : []
}

function facts(lora) {
  const { source = {} } = lora
  const lines = [
    [word("Model"), lora.family], [word("Base"), lora.base, source.base], [word("Author"), lora.author, source.author],
    [word("Licence"), lora.license, source.license], [word("Allowed"), lora.permissions, source.permissions],
    [word("Strength"), lora.strength, source.strength], [word("Hint"), lora.hint], [word("Tags"), lora.tags?.join(", "), source.tags],
    [word("Size"), lora.size && sizeOf(lora.size)], [word("Changed"), lora.modified && dateOf(lora.modified)],
    [word("Folder"), split(lora.name)[0].replace(/\/$/, "")],
  ].filter(([, value]) => value)
  return [element("dl", { className: "loom-facts" }, ...lines.flatMap(([name, value, by]) => [
    element("dt", {}, name), element("dd", {}, value, ...(by ? [" ", from(by)] : [])),
  ]))]
}

function sizeOf(bytes) {
  const power = Math.min(UNITS.length - 1, Math.max(0, Math.floor(Math.log2(bytes) / 10)))
  const value = bytes / 1024 ** power
  return `${value < 100 ? Number(value.toPrecision(2)) : Math.round(value)} ${UNITS[power]}`
}

function dateOf(seconds) {
  return new Date(1000 * seconds).toLocaleDateString(language(), { dateStyle: "medium" })
}
