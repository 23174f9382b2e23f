// The text of rows, both ways, as lora_core/stack/rows.py reads and writes it.
//
// An item is a row {name, strength, text, blocks, start, end, on, words, mask}, whose `text` is null where it follows the
// strength, whose `words` are null where they are the file's own, and whose `mask` is the number of one of the node's
// masks, negative for outside of it and 0 for the whole picture; a comment {comment}; or {fault, raw}, a tag that cannot
// be read and is kept as it is.

import { word } from "./words.js"

export const LIMIT = 20
export const MASKS = 16

const TAG = /<(?:lora|lyco):([^<>\n]*)(>?)/gi
const CODES = { "%25": "%", "%3A": ":", "%3C": "<", "%3E": ">", "%0A": "\n", "%0D": "\r" }
const CODE = new RegExp(Object.keys(CODES).join("|"), "g")
const CODE_IN_WORD = new RegExp(`${CODE.source}|%2C`, "g")
const ESCAPES = Object.fromEntries(Object.entries(CODES).map(([code, char]) => [char, code]))

/** All items of a text; words around the tags are passed over. */
export function parse(text) {
  return text.split("\n").flatMap((line) => {
    const bare = line.trim()
    if (bare.startsWith("#")) return [{ comment: bare.replace(/^#\s*/, "") }]
    return [...line.matchAll(TAG)].map((tag) => read(tag))
  })
}

export function print(items) {
  return items.map((item) => printed(item)).join("\n")
}

/** A number as short as it can be read back, without the noise of binary fractions. */
export function number(value) {
  return String(Number(value.toFixed(6)))
}

export function isRow(item) {
  return item.name !== undefined
}

export function newRow(name) {
  const bare = name.replace(/\.safetensors$/, "")
  return { name: bare, strength: 1, text: null, blocks: "", start: 0, end: 1, on: true, words: null, mask: 0 }
}

/** The strength that a text means, within the limits; null when it is none. */
export function strengthOf(text) {
  const value = Number(text.trim().replace(",", "."))
  return text.trim() === "" || !Number.isFinite(value) ? null : Math.max(-LIMIT, Math.min(LIMIT, value))
}

function printed(item) {
  if (item.comment !== undefined) return `# ${item.comment}`
  if (!isRow(item)) return item.raw
  const parts = [escaped(item.name), number(item.strength)]
  if (item.text !== null && item.text !== item.strength) parts.push(number(item.text))
  if (item.blocks) parts.push(`blocks=${escaped(item.blocks)}`)
  if (item.start !== 0) parts.push(`start=${number(item.start)}`)
  if (item.end !== 1) parts.push(`end=${number(item.end)}`)
  if (item.mask) parts.push(`mask=${item.mask}`)
  if (item.words) parts.push(`words=${item.words.map(asWord).join(",")}`)
  if (!item.on) parts.push("off")
  return `<lora:${parts.join(":")}>`
}

function read([raw, inside, closed]) {
  const [name, ...parts] = inside.split(":")
  const row = { ...newRow(""), name: plain(name) }
  const strengths = []
  let fault = closed ? "" : word("it has no closing >")
  if (!name.trim()) fault ||= word("it has no file name")
  for (const part of parts) {
    const [key, ...rest] = part.trim().split("=")
    if (rest.length || key === "on" || key === "off") fault ||= named(row, key.trim().toLowerCase(), rest.join("=").trim())
    else if (strengthOf(part) === null || strengths.length === 2) fault ||= word("{part} is not a strength", { part })
    else strengths.push(strengthOf(part))
  }
  if (fault) return { fault, raw: closed ? raw : `${raw}>` }
  row.strength = row.unet ?? strengths[0] ?? 1
  row.text = row.te ?? strengths[1] ?? null
  delete row.unet
  delete row.te
  return row
}

function named(row, key, value) {
  if (key === "on" || key === "off") row.on = key === "on"
  else if (key === "blocks") row.blocks = plain(value)
  else if (key === "unet" || key === "te") row[key] = strengthOf(value) ?? undefined
  else if (key === "words") row.words = value.split(",").map((word) => plain(word.trim(), CODE_IN_WORD)).filter(Boolean)
  else if (key === "mask") return masked(row, value)
  else if (key === "start" || key === "end") row[key] = Number(value)
  else return word("{key}= is unknown", { key })
  const fine = !["start", "end"].includes(key) || (row[key] >= 0 && row[key] <= 1)
  return fine ? "" : word("{key} must be a share of sampling, from 0 to 1", { key })
}

function masked(row, value) {
  row.mask = /^-?\d{1,3}$/.test(value) ? Number(value) : 0
  const number = Math.abs(row.mask)
  return number >= 1 && number <= MASKS ? "" : word("{value} is not the number of a mask", { value })
}

function escaped(text, code = CODE) {
  return text.replace(code, (found) => `%25${found.slice(1)}`).replace(/[:<>\n\r]/g, (char) => ESCAPES[char])
}

/** A word among others: a comma would end it. */
function asWord(text) {
  return escaped(text.trim(), CODE_IN_WORD).replaceAll(",", "%2C")
}

function plain(text, code = CODE) {
  return text.replace(code, (found) => CODES[found] ?? ",")
}
