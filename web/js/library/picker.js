// The dialog in which LoRAs are chosen: places and filters, a list or grid of any length, and what is known of one.

import { dialogOf, openDialog } from "../page/dialog.js"
import { element, split } from "../page/dom.js"
import { Bar } from "./bar.js"
import { Detail } from "./detail.js"
import { Folders } from "./folders.js"
import { ALL, FAVOURITES, found, RECENT, suits, wordsOf } from "./found.js"
import { isFavourite, load, look, noteUse, recency, turnFavourite } from "./kept.js"
import { find, listen, loras, refresh } from "./library.js"
import { VirtualList } from "./list.js"
import { optionOf, showPicture } from "./option.js"
import { word } from "../page/words.js"

const HOVER = 140 // ms on a card before it is shown; the pointer crosses others on its way to the pane

/**
 * The name of the file that was chosen, or null. `current` is the one that is chosen so far. With `family` those that a
 * model of it does not take are left out, until a person wants them. `add(name)` is called for each file that is added
 * while the dialog stays; without it there is no such thing.
 */
export function choose(current, { family = "", add = null } = {}) {
  return new Promise((resolve) => new Picker(current, { family, add, resolve }).open())
}

class Picker {
  constructor(current, { family, add, resolve }) {
    Object.assign(this, { resolve, place: ALL, model: family, family, found: [], added: new Map() })
    this.current = find(current)?.name
    this.selected = this.current
    this.actions = {
      pick: (lora) => this.pick(lora), turn: (lora) => this.turn(lora), about: (lora) => this.about(lora),
      add: add && ((lora) => this.add(lora, add)),
    }
    this.bar = new Bar(this.model, {
      typed: () => this.filter(true), changed: () => this.filter(false), family: (value) => this.setFamily(value),
      place: (place) => this.setPlace(place), where: () => this.turnPane("loom-choosing"), close: () => this.close(null),
    })
    this.list = new VirtualList({
      label: word("LoRAs"), id: "loom-options", seen: showPicture,
      draw: (lora, index, grid) => this.option(lora, index, grid),
    })
    this.folders = new Folders((place) => this.setPlace(place))
    this.detail = new Detail(this.actions, (words) => this.bar.say(words))
    this.back = element("button", { type: "button", className: "loom-button loom-back" }, word("Back to the list"))
    this.back.addEventListener("click", () => this.turnPane("loom-reading", false))
    const about = element("div", { className: "loom-about-pane" }, this.back, this.detail.element)
    const panes = element("div", { className: "loom-panes" }, this.folders.element, this.list.element, about)
    this.dialog = dialogOf("loom-picker", word("Choose a LoRA"), [this.bar.head, panes, this.bar.foot], { closed: () => this.close(null) })
    this.dialog.classList.toggle("loom-adds", Boolean(add))
    this.dialog.addEventListener("keydown", (event) => this.key(event))
  }

  open() {
    this.stop = listen(() => this.fill())
    openDialog(this.dialog)
    this.fill()
    this.bar.search.focus()
    this.list.reveal()
    refresh().finally(() => this.came("read"))
    load().then(() => this.came("kept"))
  }

  /** What was asked for when the dialog opened has come. */
  came(what) {
    this[what] = true
    if (!this.done) this.fill()
  }

  close(name) {
    if (this.done) return
    this.done = true
    this.stop()
    this.list.stop()
    clearTimeout(this.hover)
    this.dialog.close()
    this.resolve(name)
  }

  // -- what is done with a file ----------------------------------------------------------------------------------

  pick(lora) {
    noteUse(lora.name)
    this.close(lora.name)
  }

  add(lora, add) {
    add(lora.name)
    noteUse(lora.name)
    this.added.set(lora.name, (this.added.get(lora.name) ?? 0) + 1)
    const count = [...this.added.values()].reduce((sum, times) => sum + times, 0)
    this.bar.added(count, split(lora.name)[1])
    this.select(lora.name)
    this.list.redraw(this.list.selected)
    this.countPlaces()
  }

  turn(lora) {
    turnFavourite(lora)
    this.bar.say(isFavourite(lora) ? word("A favourite now") : word("No favourite any more"))
    const focused = document.activeElement?.className
    this.fill()
    if (focused?.includes("loom-star")) this.detail.element.querySelector("button.loom-star")?.focus()
  }

  about(lora) {
    this.select(lora.name)
    this.turnPane("loom-reading", true)
    this.back.focus()
  }

  /** Panes that lie over the list where there is no room beside it. What had the focus in one gives it to the list. */
  turnPane(name, open = !this.dialog.classList.contains(name)) {
    const closes = this.dialog.classList.contains(name) && !open
    this.dialog.classList.toggle(name, open)
    if (closes) this.list.element.focus()
  }

  // -- what is listed --------------------------------------------------------------------------------------------

  setFamily(family) {
    this.family = family
    this.fill()
  }

  setPlace(place) {
    this.place = place
    this.turnPane("loom-choosing", false)
    this.folders.select(place)
    this.filter(false)
    this.list.element.scrollTop = 0
    this.list.reveal()
  }

  /** Everything anew: more is known of the files, or other ones count. */
  fill() {
    this.bar.fill(loras(), this.family)
    this.countPlaces()
    this.filter(false)
  }

  countPlaces() {
    const fitting = loras().filter((lora) => suits(lora, this.family))
    const place = recency()
    this.folders.show(fitting.map((lora) => lora.name), [
      [ALL, word("All"), "all", fitting.length],
      [FAVOURITES, word("Favourites"), "star", fitting.filter(isFavourite).length],
      [RECENT, word("Recently used"), "recent", fitting.filter((lora) => place(lora) >= 0).length],
    ], this.place)
  }

  /** Lists what the search finds. A new search selects its first. */
  filter(anew) {
    const { place, family } = this
    const words = wordsOf(this.bar.search.value)
    this.found = found(loras(), { words, place, family, sort: look("sort") })
    const unread = this.read ? 0 : loras().filter((lora) => lora.size === undefined).length
    this.bar.tell({ found: this.found.length, unread, place, family, words })
    this.list.show(this.found, look("view") === "grid")
    this.list.element.querySelector(".loom-empty")?.remove()
    if (!this.found.length) this.list.element.append(this.nothing(words))
    if (anew) this.list.element.scrollTop = 0
    const known = !anew && this.found.some((lora) => lora.name === this.selected)
    this.select(known ? this.selected : this.found[0]?.name)
  }

  /** Why there is nothing to see, and the way out. */
  nothing(words) {
    const everywhere = found(loras(), { words, place: ALL, family: "", sort: "name" }).length
    const text = !loras().length ? (this.read ? word("There is no LoRA in the loras folders.") : word("Reading the loras folders..."))
      : this.place === FAVOURITES && !words.length ? word("No favourites yet: the star beside a LoRA makes it one.")
      : this.place === RECENT && !words.length ? word("Nothing was used yet.") : word("Nothing found here.")
    const made = element("div", { className: "loom-empty" }, text)
    if (everywhere && (this.family || this.place !== ALL)) {
      const label = word("Look everywhere ({count})", { count: everywhere.toLocaleString() })
      const out = element("button", { type: "button", className: "loom-button" }, label)
      out.addEventListener("click", () => {
        this.setFamily("")
        this.setPlace(ALL)
        this.bar.search.focus()
      })
      made.append(out)
    }
    return made
  }

  option(lora, index, grid) {
    const made = optionOf(lora, grid, this, this.actions)
    made.addEventListener("pointermove", ({ movementX, movementY }) => {
      if (lora.name === this.selected || !(movementX || movementY)) return // else the list moved below the pointer
      clearTimeout(this.hover)
      this.hover = setTimeout(() => this.select(lora.name), grid ? HOVER : 0)
    })
    made.addEventListener("pointerleave", () => clearTimeout(this.hover))
    made.addEventListener("click", (event) => (event.shiftKey && this.actions.add ? this.actions.add(lora) : this.pick(lora)))
    return made
  }

  select(name) {
    this.selected = name
    const index = this.found.findIndex((lora) => lora.name === name)
    this.list.select(index)
    this.bar.search.setAttribute("aria-activedescendant", this.list.optionId(index))
    this.detail.show(this.found[index])
  }

  step(by) {
    const at = this.list.selected
    const to = Math.max(0, Math.min(this.found.length - 1, at + by))
    if (this.found[to]) this.select(this.found[to].name)
    this.list.reveal()
  }

  // -- keyboard --------------------------------------------------------------------------------------------------

  /** Keys stay here, or the front end would take them for its own. */
  key(event) {
    if (event.key === "Escape") {
      event.preventDefault()
      this.close(null)
    } else if (event.target === this.bar.search) this.moveKey(event, !this.bar.search.value)
    else if (event.target === this.list.element && !this.moveKey(event, true)) this.listKey(event)
  }

  /** Whether the key moves or chooses. `all`: also those that move within a text. */
  moveKey(event, all) {
    const { columns, page, grid } = this.list
    const end = this.found.length
    const steps = { ArrowDown: columns, ArrowUp: -columns, PageDown: page, PageUp: -page }
    if (all || event.ctrlKey) Object.assign(steps, { Home: -end, End: end })
    if (all && grid) Object.assign(steps, { ArrowRight: 1, ArrowLeft: -1 })
    const lora = this.found[this.list.selected]
    if (event.key in steps) this.step(steps[event.key])
    else if (event.key === "Enter" && lora) (event.shiftKey && this.actions.add ? this.actions.add : this.actions.pick)(lora)
    else return false
    event.preventDefault()
    return true
  }

  /** Letters that are typed while the list has the focus go to the search, but for F. */
  listKey(event) {
    const lora = this.found[this.list.selected]
    if (event.ctrlKey || event.metaKey || event.altKey || event.key.length > 1) return
    if (event.key.toLowerCase() === "f" && lora) {
      event.preventDefault()
      this.turn(lora)
    } else this.bar.search.focus()
  }
}
