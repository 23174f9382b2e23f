// Which LoRAs the picker lists, and in which order.

import { split } from "../page/dom.js"
import { isFavourite, recency, timesUsed } from "./kept.js"
import { phrase } from "../page/words.js"

export const SORTS = {
  name: phrase("Name"), newest: phrase("Newest"), used: phrase("Most used"), size: phrase("Largest"),
}
export const ALL = "all"
export const FAVOURITES = "favourites"
export const RECENT = "recent"

const VALUES = { newest: (lora) => lora.modified ?? 0, size: (lora) => lora.size ?? 0, used: timesUsed }
const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" })
const texts = new WeakMap() // of what a search looks at: with thousands of files it is not made for each letter
let byName = { of: null, list: [] }

/** Those that the words find in a place, for a family of models or, without one, for any. A place may be a folder. */
export function found(loras, { words, place, family, sort }) {
  const places = place === RECENT ? recency() : null
  let list = ordered(loras, sort).filter((lora) => suits(lora, family) && isIn(lora, place, places))
  if (places) list.sort((a, b) => places(a) - places(b))
  if (!words.length) return list
  const scored = list.map((lora) => [score(lora, words), lora]).filter(([points]) => points > 0)
  if (sort === "name" && !places) scored.sort(([a], [b]) => b - a)
  return scored.map(([, lora]) => lora)
}

export function wordsOf(text) {
  return text.toLowerCase().split(/\s+/).filter(Boolean)
}

/** Whether a model of a family may take a file: also one of which no family can be told. */
export function suits(lora, family) {
  return !family || !lora.fits?.length || lora.fits.includes(family)
}

/** How many files there are for each family, the most first. */
export function families(loras) {
  const counts = new Map()
  for (const { fits } of loras) for (const family of fits ?? []) counts.set(family, (counts.get(family) ?? 0) + 1)
  return [...counts].sort(([a, many], [b, few]) => few - many || collator.compare(a, b))
}

export function compareNames(a, b) {
  return collator.compare(a, b)
}

function isIn(lora, place, places) {
  if (place === ALL) return true
  if (place === FAVOURITES) return isFavourite(lora)
  return places ? places(lora) >= 0 : lora.name.startsWith(place)
}

function ordered(loras, sort) {
  if (byName.of !== loras) {
    const bare = loras.map((lora) => [split(lora.name)[1], lora])
    byName = { of: loras, list: bare.sort(([a], [b]) => collator.compare(a, b)).map(([, lora]) => lora) }
  }
  const value = VALUES[sort]
  return value ? [...byName.list].sort((a, b) => value(b) - value(a)) : byName.list
}

/** 0 when a word is not found; more where the file's own name has it. */
function score(lora, words) {
  const { bare, all } = textOf(lora)
  let points = 1
  for (const word of words) {
    if (!all.includes(word)) return 0
    points += bare.startsWith(word) ? 3 : bare.includes(word) ? 2 : 0
  }
  return points
}

function textOf(lora) {
  if (!texts.has(lora)) {
    const parts = [lora.name, lora.title, lora.family, lora.base, lora.author, ...(lora.words ?? []), ...(lora.tags ?? [])]
    texts.set(lora, { bare: split(lora.name)[1].toLowerCase(), all: parts.filter(Boolean).join("\n").toLowerCase() })
  }
  return texts.get(lora)
}
