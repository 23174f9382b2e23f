// The pictures and captions of a folder as the page knows them, what is changed in them, and how that is undone.

import { phrase, word } from "../page/words.js"
import { captions, copies, look, mask, maskBack, pictures, putBack, takeOut } from "./server.js"
import * as counted from "./words.js"

const READS = { off: "-mask files", alpha: "auto" } // what reads mask files, too, by what does not
const AT_ONCE = 60 // pictures that are asked for in one go; the server looks at as many as it can in a second

/** Calls `changed` whenever there is something else to show, and `say` with what happened, in words. */
export class Book {
  constructor(asked, node, changed, say) {
    this.asked = asked
    this.node = node
    this.changed = changed
    this.say = say
    this.pictures = []
    this.locked = ""
    this.total = 0
    this.done = []
    this.undone = []
    this.byName = new Map()
    this.last = Promise.resolve()
    this.closed = false
  }

  /** Reads the folder; looks at pictures go on in the background. Raises Refusal. */
  async load() {
    const before = new Map(this.pictures.map((picture) => [picture.name, picture]))
    const found = await pictures(this.asked)
    this.locked = found.locked
    this.total = found.total
    this.pictures = found.pictures.map((picture) => kept(before.get(picture.name), picture))
    this.byName = new Map(this.pictures.map((picture) => [picture.name, picture]))
    this.changed()
    this.inspect()
  }

  close() {
    this.closed = true
  }

  /** Asks for sizes, crops and marks of all pictures, `first` ones first. */
  async inspect(first = []) {
    this.first = first
    if (this.inspecting) return
    this.inspecting = true
    try {
      do {
        for (let wanted; (wanted = this.unseen()).length && !this.closed; ) await this.inspectSome(wanted)
        if (!this.closed) this.markCopies(await copies(this.asked))
      } while (this.unseen().length && !this.closed)
    } catch (error) {
      this.say(word("The pictures could not be checked: {why}", { why: error.message }), true)
    } finally {
      this.inspecting = false
      this.changed()
    }
  }

  unseen() {
    const near = this.first.map((name) => this.byName.get(name)).filter((picture) => picture && !picture.look)
    const left = near.length ? near : this.pictures.filter((picture) => !picture.look)
    return left.slice(0, AT_ONCE).map((picture) => picture.name)
  }

  async inspectSome(wanted) {
    const { looks } = await look(this.asked, wanted)
    const found = Object.entries(looks)
    const gone = found.length ? [] : wanted.map((name) => [name, {}])
    for (const [name, one] of [...found, ...gone]) Object.assign(this.byName.get(name) ?? {}, { look: one })
    this.changed()
  }

  markCopies({ copies: groups, whole }) {
    if (!whole) this.say(word("Among so many pictures only exact copies are marked; Dataset Doctor finds near ones, too."))
    for (const picture of this.pictures) picture.copies = []
    for (const [mark, words, names] of groups) for (const name of names) this.byName.get(name)?.copies.push([mark, words])
    this.changed()
  }

  /** One action after the other, as each waits for the server and changes what the next one finds. */
  turn(action) {
    this.last = this.last.then(action, action)
    return this.last
  }

  /** Writes captions, `[{ name, text }]`, as one step that can be undone. */
  change(edits, words) {
    for (const { name, text } of edits) {
      const picture = this.byName.get(name) // which may be gone by now
      if (picture) picture.pending = text
    }
    return this.turn(async () => {
      const before = new Map(edits.map(({ name }) => [name, this.byName.get(name)?.caption ?? ""]))
      const others = edits.filter(({ name, text }) => text.trim() !== before.get(name))
      for (const { name } of edits) this.settle(name)
      const saved = await this.write(others)
      this.changed()
      if (!saved.length) return
      const back = saved.map(({ name }) => ({ name, text: before.get(name) }))
      this.did({ words, undo: () => this.write(back), redo: () => this.write(saved) })
    })
  }

  settle(name) {
    const picture = this.byName.get(name)
    if (picture) Object.assign(picture, { pending: undefined, mine: undefined, why: "" })
  }

  /** Sends captions; those that were written. One that was changed meanwhile waits in `mine` for an answer. */
  async write(edits) {
    if (!edits.length) return []
    for (const { name, text } of edits) if (this.byName.has(name)) this.byName.get(name).pending = text
    const sent = edits.map(({ name, text }) => ({ name, text, was: this.byName.get(name)?.was ?? "" }))
    let answer
    try {
      answer = await captions(this.asked, sent)
    } catch (error) {
      this.say(word("Not saved: {why}", { why: error.message }), true)
      for (const { name, text } of edits) this.keepMine(name, text, error.message)
      this.changed()
      return []
    }
    for (const { name } of edits) this.settle(name)
    for (const caption of answer.captions) Object.assign(this.byName.get(caption.name) ?? {}, caption)
    const text = new Map(edits.map((edit) => [edit.name, edit.text]))
    for (const name of answer.changed) this.keepMine(name, text.get(name), "")
    for (const [name, why] of answer.refused) this.keepMine(name, text.get(name), why)
    const failed = new Set([...answer.changed, ...answer.refused.map(([name]) => name)])
    this.tell(edits.length - failed.size, answer)
    this.changed()
    return edits.filter(({ name }) => !failed.has(name))
  }

  keepMine(name, text, why) {
    const picture = this.byName.get(name)
    if (picture) Object.assign(picture, { pending: undefined, mine: text, why })
  }

  tell(saved, { changed, refused }) {
    const many = { captions: counted.captions(changed.length || saved) }
    if (refused.length) this.say(word("Not saved: {why}", { why: refused[0][1] }), true)
    else if (changed.length) this.say(word("{captions} changed on disk meanwhile: choose for each", many), true)
    else this.say(word("Saved {captions}", many))
  }

  /** Takes what is on disk, and forgets what was typed. */
  dropMine(picture) {
    this.settle(picture.name)
    this.changed()
  }

  /** Moves pictures with their captions to the folder `_removed` below. */
  take(names) {
    return this.turn(() => this.takeNow(names))
  }

  async takeNow(names) {
    const taken = await this.out(names)
    if (!Object.keys(taken).length) return
    const many = counted.pictures(Object.keys(taken).length)
    const step = { words: word("take out {pictures}", { pictures: many }), taken }
    step.undo = () => this.back(step.taken)
    step.redo = async () => Object.keys((step.taken = await this.out(Object.keys(step.taken))))
    this.did(step)
  }

  async out(names) {
    return this.moved(async () => {
      const { taken, refused, to } = await takeOut(this.asked, names)
      const many = counted.pictures(Object.keys(taken).length)
      if (refused.length) this.say(word("Not taken out: {why}", { why: refused[0][1] }), true)
      else this.say(word("{pictures} moved to the folder {to}, with captions", { pictures: many, to }))
      return taken
    })
  }

  async back(taken) {
    return this.moved(async () => {
      const { back, refused } = await putBack(this.asked, taken)
      if (refused.length) this.say(word("Not put back: {why}", { why: refused[0][1] }), true)
      else this.say(word("{pictures} put back", { pictures: counted.pictures(back.length) }))
      return back
    })
  }

  async moved(action) {
    let found = []
    try {
      found = await action()
      await this.load()
    } catch (error) {
      this.pictures = [] // a folder without any picture is none that can be read
      this.byName = new Map()
      this.say(error.message, true)
      this.changed()
    }
    return found
  }

  /** Makes the mask of a picture from what the mask editor has saved, as a step that can be undone. */
  paint(name, painted) {
    return this.turn(async () => {
      try {
        const { mark, share } = await mask(this.asked, name, painted)
        const told = [word("Saved the mask of {name}: {share} % of the picture is learned", { name, share: percent(share) })]
        if (share === 1) told[0] = word("{name} has no mask: all of it is learned", { name })
        const { before, ours } = share < 1 ? this.readMasks(READS[this.asked.masks]) : {}
        const value = this.asked.masks
        if (ours) told.push(word("masks of the node is {value} now, so that training uses it", { value }))
        else if (before) told.push(word("masks of the node comes from another node; set it to {value} there", { value }))
        await this.load()
        if (mark) this.did(this.painting(name, mark, before))
        this.say(told.join(". "))
      } catch (error) {
        this.say(word("The mask was not saved: {why}", { why: error.message }), true)
      }
    })
  }

  /** `before` is which masks the node read, if that was changed with the mask. */
  painting(name, mark, before) {
    const step = { words: word("the mask of {name}", { name }) }
    step.undo = step.redo = async () => {
      try {
        mark = (await maskBack(this.asked, name, mark)).mark
        before = this.readMasks(before).before
        await this.load()
        return [name]
      } catch (error) {
        this.say(word("The mask was not put back: {why}", { why: error.message }), true)
        return []
      }
    }
    return step
  }

  /** Has the node read such masks, if it does not yet; the value before, and whether it is ours to set. */
  readMasks(value) {
    if (!value || value === this.asked.masks) return {}
    const before = this.asked.masks
    this.asked.masks = value
    return { before, ours: this.node.readMasks(value) }
  }

  did(step) {
    this.done.push(step)
    this.undone = []
    this.changed()
  }

  undo() {
    return this.turn(() => this.again(this.done, this.undone, "undo", phrase("Undone: {step}")))
  }

  redo() {
    return this.turn(() => this.again(this.undone, this.done, "redo", phrase("Done again: {step}")))
  }

  async again(from, to, how, words) {
    const step = from.pop()
    if (!step) return
    const found = await step[how]()
    if (found.length) to.push(step)
    if (found.length) this.say(word(words, { step: step.words }))
    this.changed()
  }
}

/** All marks of a picture with their sentences. */
export function marksOf({ marks, look, copies, fault, mine }) {
  const faults = [fault && ["unreadable caption", fault], look?.fault && ["unreadable", look.fault]].filter(Boolean)
  const open = mine === undefined ? [] : [["not saved", word("What was typed here is not saved yet.")]]
  return [...open, ...faults, ...marks, ...(look?.marks ?? []), ...(copies ?? [])]
}

function percent(share) {
  return Math.round(1000 * share) / 10
}

/** What is known of a picture stays with it when its file is as it was. */
function kept(before, picture) {
  if (before?.version !== picture.version || before.mask !== picture.mask) return picture
  return { ...picture, look: before.look, copies: before.copies, mine: before.mine, why: before.why, pending: before.pending }
}
