// Strengths per block, as the text of a row says them (lora_core/families/blocks.py), taken apart for sliders.

import { phrase } from "../page/words.js"

const SELECTOR = /^(.*?)(?:_blocks)?\.?(?:(\d+)(?:-(\d+))?)?$/
const THIRDS = 3

export const PRESETS = [
  [phrase("all blocks"), ""], [phrase("attention only"), "ALL=0, *att*=1"], [phrase("all but attention"), "*att*=0"],
]

/**
 * The parts of a model that have a slider each, {name, group, first, last}, of the blocks that the server names: of a
 * model with one kind of numbered blocks its first, middle and last ones.
 */
export function partsOf(blocks) {
  const parts = blocks.filter((name) => name !== "REST").map(part)
  const numbered = parts.filter(({ first, last }) => last - first + 1 >= THIRDS)
  if (numbered.length !== 1 || parts.length >= THIRDS) return parts
  return parts.flatMap((each) => (each === numbered[0] ? thirds(each) : [each]))
}

/** The strength of a part in a text; null where its blocks have several. */
export function strengthOf(text, { group, first, last }, presets) {
  let found = 1
  for (const { name, value } of itemsOf(text, presets)) {
    const other = part(name)
    if (name.toUpperCase() === "ALL") found = value
    else if (value === null || /[*?[/]/.test(name)) found = null
    else if (other.group.toUpperCase() === group.toUpperCase() && overlaps(other, { first, last })) {
      found = other.first <= first && other.last >= last ? value : null
    }
  }
  return found
}

/** The text with another strength for a part; as short as it can be where all parts have one of their own. */
export function withStrength(text, parts, changed, value, presets) {
  const all = parts.map((each) => [each.name, each === changed ? value : strengthOf(text, each, presets)])
  const own = all.some(([, strength]) => strength === null)
  if (own) return [text.trim(), `${changed.name}=${value}`].filter(Boolean).join(", ")
  return all.filter(([, strength]) => strength !== 1).map(([name, strength]) => `${name}=${strength}`).join(", ")
}

/** As one word, for comparing. */
export function bare(text) {
  return text.replace(/\s+/g, "").toLowerCase()
}

/** {name, value} of each item; a value that cannot be read is null. */
function itemsOf(text, presets) {
  return text.split(/[,;]/).map((each) => each.trim()).filter(Boolean).flatMap((word) => {
    const at = word.lastIndexOf("=")
    if (at < 0 && presets[word.toLowerCase()]) return itemsOf(presets[word.toLowerCase()], {})
    const value = Number(word.slice(at + 1))
    return [{ name: word.slice(0, Math.max(at, 0)).trim(), value: at > 0 && Number.isFinite(value) ? value : null }]
  })
}

function part(name) {
  const [, group, first, last] = SELECTOR.exec(name)
  return first === undefined
    ? { name, group, first: -Infinity, last: Infinity }
    : { name, group, first: Number(first), last: Number(last ?? first) }
}

function thirds({ group, first, last }) {
  const count = last - first + 1
  const edges = [0, 1, 2, 3].map((each) => first + Math.round((each * count) / THIRDS))
  return edges.slice(0, THIRDS).map((start, index) => part(`${group}.${start}-${edges[index + 1] - 1}`))
}

function overlaps(one, other) {
  return one.first <= other.last && other.first <= one.last
}
