// The strengths that the parts of a merge have now, as multiples of those that they were merged at.

import { isLinked } from "../page/nodes.js"
import { isRow, parse } from "../page/rows.js"

const STRENGTHS = /(<(?:lora|lyco):[^:<>\n]*)(?::-?[\d.]+){1,2}|:o(?:n|ff)(?=[:>])/gi

/** A text of rows without their strengths and switches. */
export function withoutStrengths(text) {
  return text.replace(STRENGTHS, "$1")
}

/**
 * [strength, text strength] of each part, or null when they cannot be told. `parts` are [name, strength, text strength]
 * in their order: the rows of the stack that is connected, then the adapters, whose strengths are the node's own.
 */
export function factorsOf(node, parts, { strengths, text_strengths: texts }) {
  const rows = rowsOf(node)
  if (!rows) return null
  const now = []
  for (const row of rows) {
    const on = row.on && (row.strength || (row.text ?? row.strength))
    if (bare(row.name) === parts[now.length]?.[0]) now.push(on ? [row.strength, row.text ?? row.strength] : [0, 0])
    else if (on) return null
  }
  const count = parts.length - now.length
  const own = numbers(strengths, Array(count).fill(1))
  const text = numbers(texts, own)
  if (own.length !== count || text.length !== count || [...own, ...text].some(Number.isNaN)) return null
  return divided([...now, ...own.map((each, at) => [each, text[at]])], parts)
}

function divided(now, parts) {
  const made = now.map((pair, at) => pair.map((value, side) => {
    const before = parts[at][1 + side]
    return before ? value / before : value ? NaN : 1
  }))
  return made.flat().some(Number.isNaN) ? null : made
}

/** Of the Load LoRA Stack that is connected; none without one, null when what is connected is not known. */
function rowsOf(node) {
  const link = node.inputs?.find((input) => input.name === "lora_stack")?.link
  if (link == null) return []
  const origin = node.graph.getNodeById(node.graph.getLink(link)?.origin_id)
  if (origin?.comfyClass !== "LoraLoom_LoadLoraStack" || isLinked(origin, "lora_stack", "rows")) return null
  return parse(origin.widgets.find((widget) => widget.name === "rows").value).filter(isRow)
}

function numbers(text, otherwise) {
  return text?.trim() ? text.split(",").map((part) => (part.trim() ? Number(part) : NaN)) : otherwise
}

function bare(name) {
  return name.replaceAll("\\", "/").split("/").pop().replace(/\.safetensors$/, "")
}
