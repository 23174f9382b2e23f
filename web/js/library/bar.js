// The picker's head and foot: search, filters, how the list looks, what was added.

import { element } from "../page/dom.js"
import { ALL, families, FAVOURITES, RECENT, SORTS } from "./found.js"
import { icon } from "./icons.js"
import { look, setLook } from "./kept.js"
import { phrase, word } from "../page/words.js"

const PLACES = { [FAVOURITES]: phrase("favourites"), [RECENT]: phrase("recently used") }

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
    this.families = this.selection(word("Models"), (value) => on.family(value))
    this.sort = this.selection(word("Sorted by"), (value) => this.setLook("sort", value))
    this.sort.append(...Object.entries(SORTS).map(([value, words]) => element("option", { value }, word(words))))
    this.views = [this.view("list", word("List")), this.view("grid", word("Pictures"))]
    this.chips = element("div", { className: "loom-chips" })
    this.told = element("span", { className: "loom-grow", role: "status" })
    this.end = button("loom-button loom-end-button", word("Close"), on.close)
    this.head = this.drawHead()
    const adds = element("span", { className: "loom-if-adds" }, key("Shift+Enter"), ` ${word("adds and stays")} `)
    const keys = element("span", { className: "loom-keys loom-dim" }, key("Enter"), ` ${word("picks")} `, adds)
    this.foot = element("div", { className: "loom-ends" }, this.told, keys, this.end)
  }

  drawHead() {
    const where = button("loom-button loom-where", "", this.on.where)
    where.append(icon("folder"), word("Where"))
    const views = element("div", { className: "loom-views", role: "group", "aria-label": word("View") }, ...this.views)
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
    this.families.replaceChildren(element("option", { value: "" }, word("All models")), ...lines)
    this.families.value = family
  }

  /** What is listed, and each filter as a chip that takes it off. */
  tell({ found, unread, place, family, words }) {
    const all = found.toLocaleString()
    const count = words.length || place !== ALL || family ? word("{count} found", { count: all }) : all
    const reading = unread.toLocaleString()
    this.count.textContent = unread ? word("{found}, {unread} still read", { found: count, unread: reading }) : count
    this.sort.value = look("sort")
    for (const view of this.views) view.setAttribute("aria-pressed", String(view.value === look("view")))
    const chips = []
    const fits = family === this.model ? word("fits your model: {family}", { family }) : word("for {family}", { family })
    if (family) chips.push(this.chip(fits, () => this.on.family("")))
    const where = PLACES[place] ? word(PLACES[place]) : word("in {folder}", { folder: place })
    if (place !== ALL) chips.push(this.chip(where, () => this.on.place(ALL)))
    this.chips.replaceChildren(...chips)
  }

  chip(words, off) {
    const made = button("loom-chip", "", () => {
      off()
      this.search.focus()
    })
    made.append(element("span", { className: "loom-cut" }, words), icon("off"))
    made.setAttribute("aria-label", word("{filter}: take this filter off", { filter: words }))
    made.title = word("Take this filter off")
    return made
  }

  say(words) {
    this.told.textContent = words
  }

  added(count, name) {
    this.say(word("{count} added, last {name}", { count, name }))
    this.end.textContent = word("Done")
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
