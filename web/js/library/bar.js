// The picker's head and foot: search, filters, how the list looks, what was added.

import { element } from "../page/dom.js"
import { ALL, families, FAVOURITES, RECENT, SORTS } from "./found.js"
import { icon } from "./icons.js"
import { look, setLook } from "./kept.js"
import { word } from "../page/words.js"

const PLACES = { [FAVOURITES]: "favourites", [RECENT]: "recently used" }

/** `model` is the family of the model in question, if known. `on` has what is called for each thing a person does. */
export class Bar {
  constructor(model, on) {
    Object.assign(this, { model, on })
    this.search = element("input", {
      type: "search", className: "loom-search", placeholder: word("Search names, trigger words, models"),
      autocomplete: "off",
      spellcheck: false, role: "combobox", "aria-label": word("Search LoRAs"), "aria-expanded": "true",
      "aria-controls": "loom-options", "aria-autocomplete": "list",
    })
    this.search.addEventListener("input", on.typed)
    this.count = element("div", { className: "loom-count", role: "status" })
    this.families = this.selection("Models", (value) => on.family(value))
    this.sort = this.selection("Sorted by", (value) => this.setLook("sort", value))
    this.sort.append(...Object.entries(SORTS).map(([value, words]) => element("option", { value }, words)))
    this.views = [this.view("list", "List"), this.view("grid", "Pictures")]
    this.chips = element("div", { className: "loom-chips" })
    this.told = element("span", { className: "loom-grow", role: "status" })
    this.end = button("loom-button loom-end-button", "Close", on.close)
    this.head = this.drawHead()
    this.foot = element("div", { className: "loom-ends" }, this.told, element("span", { className: "loom-keys loom-dim" },
      key("Enter"), " picks ", element("span", { className: "loom-if-adds" }, key("Shift+Enter"), " adds and stays ")), this.end)
  }

  drawHead() {
    const where = button("loom-button loom-where", "", this.on.where)
    where.append(icon("folder"), "Where")
    const views = element("div", { className: "loom-views", role: "group", "aria-label": "View" }, ...this.views)
    return element("div", { className: "loom-find" },
      element("div", { className: "loom-tools" }, this.search, this.count),
      element("div", { className: "loom-tools" }, where, this.families, this.sort, views, this.chips))
  }

  selection(label, changed) {
    const made = element("select", { className: "loom-selection", "aria-label": label, title: label })
    made.addEventListener("change", () => changed(made.value))
    return made
  }

  view(value, words) {
    const made = button("loom-button loom-view", "", () => this.setLook("view", value))
    made.append(icon(value), element("span", { className: "loom-unseen" }, words))
    made.title = words
    made.value = value
    return made
  }

  setLook(kind, value) {
    setLook(kind, value)
    this.on.changed()
  }

  /** The families that there are, and how the list looks. */
  fill(loras, family) {
    const counts = families(loras)
    if (family && !counts.some(([name]) => name === family)) counts.push([family, 0])
    const lines = counts.map(([value, count]) => element("option", { value }, `${value} (${count.toLocaleString()})`))
    this.families.replaceChildren(element("option", { value: "" }, "All models"), ...lines)
    this.families.value = family
  }

  /** What is listed, and each filter as a chip that takes it off. */
  tell({ found, unread, place, family, words }) {
    const count = words.length || place !== ALL || family ? `${found.toLocaleString()} found` : found.toLocaleString()
    this.count.textContent = unread ? `${count}, ${unread.toLocaleString()} still read` : count
    this.sort.value = look("sort")
    for (const view of this.views) view.setAttribute("aria-pressed", String(view.value === look("view")))
    const chips = []
    if (family) chips.push(this.chip(`${family === this.model ? "fits your model: " : "for "}${family}`, () => this.on.family("")))
    if (place !== ALL) chips.push(this.chip(PLACES[place] ?? `in ${place}`, () => this.on.place(ALL)))
    this.chips.replaceChildren(...chips)
  }

  chip(words, off) {
    const made = button("loom-chip", "", () => {
      off()
      this.search.focus()
    })
    made.append(element("span", { className: "loom-cut" }, words), icon("off"))
    made.setAttribute("aria-label", `${words}: take this filter off`)
    made.title = "Take this filter off"
    return made
  }

  say(words) {
    this.told.textContent = words
  }

  added(count, name) {
    this.say(`${count} added, last ${name}`)
    this.end.textContent = "Done"
  }
}

function key(name) {
  return element("kbd", {}, name)
}

function button(className, text, action) {
  const made = element("button", { type: "button", className }, text)
  made.addEventListener("click", action)
  return made
}
