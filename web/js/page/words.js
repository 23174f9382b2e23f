// The page's own words, and sentences of the server, in the language of the front end. The English is the key; what it
// is in other languages comes from locales/ of this pack, which ComfyUI serves with what all packs have there.

import { api } from "../../../../scripts/api.js"
import { app } from "../../../../scripts/app.js"

const SETTING = "Comfy.Locale"
const HOLE = /\{(\w+)\}/g
const SENTENCES = /(?<=[.!?]) (?=\p{Lu})/u
const WHOLE = /^said/ // the name of what is itself a sentence of the server
let tables = null // by language, once one beside English was needed

/** `text` as it is read in the front end's language, its {names} filled in; as it is where there is no translation. */
export function word(text, values = {}) {
  const said = tables?.[language()]?.words[text] ?? text
  return said.replace(HOLE, (whole, name) => (Object.hasOwn(values, name) ? String(values[name]) : whole))
}

/** Marks a text of a table that is looked up later, with `word`. */
export function phrase(text) {
  return text
}

/** What the server says, sentence by sentence, in the front end's language; as it is where that is not known. */
export function spoken(text) {
  const known = tables?.[language()]
  if (!known || !text) return text
  known.patterns ??= patternsOf(known.server)
  return text.split("\n").map((line) => line.split(SENTENCES).map((each) => sentence(each, known.patterns)).join(" ")).join("\n")
}

/** A name, a number or a file in it stays; what is called {said} is spoken in turn. */
function sentence(text, patterns) {
  for (const [pattern, said] of patterns) {
    const found = pattern.exec(text)?.groups
    if (found) return said.replace(HOLE, (_, name) => (WHOLE.test(name) ? sentence(found[name], patterns) : found[name]))
  }
  return text
}

/** What says more of its own goes first, as others may have it within their holes. */
function patternsOf(server) {
  const own = ([english]) => english.replace(HOLE, "").length
  return Object.entries(server).sort((a, b) => own(b) - own(a)).map(([english, said]) => [patternOf(english), said])
}

function patternOf(english) {
  const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")
  const parts = english.split(HOLE).map((part, at) => (at % 2 ? `(?<${part}>.*?)` : escaped(part)))
  return new RegExp(`^${parts.join("")}\\.?(?<_>)$`, "i") // a report ends it with a full stop
}

/** Makes the words of other languages known when the front end speaks one, or is told to: then it is not yet so. */
export async function learn() {
  app.ui.settings.addEventListener(`${SETTING}.change`, ask)
  if (language() !== "en") await ask()
}

async function ask() {
  if (tables) return
  const answer = await api.fetchApi("/i18n").catch(() => undefined)
  if (!answer?.ok) return
  const all = Object.entries(await answer.json())
  tables = Object.fromEntries(all.map(([name, { loraLoom: words = {}, loraLoomServer: server = {} }]) => [name, { words, server }]))
}

/** As the front end calls it, and the browser in its own formats. */
export function language() {
  return app.extensionManager?.setting?.get(SETTING) ?? "en"
}
