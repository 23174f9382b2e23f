// What is done to the captions of a selection: texts in, texts out.

import { phrase } from "../page/words.js"

export const ACTIONS = {
  end: { label: phrase("Add at the end"), change: (text, tag) => (has(text, tag) ? text : joined([...tags(text), tag])) },
  front: { label: phrase("Add in front"), change: (text, tag) => (has(text, tag) ? text : joined([tag, ...tags(text)])) },
  remove: { label: phrase("Remove"), change: remove },
  replace: { label: phrase("Replace"), change: (text, old, fresh) => tidy(text.replace(anywhere(old), () => fresh)) },
}

function tags(text) {
  return text.split(",").map((tag) => tag.trim()).filter(Boolean)
}

function joined(list) {
  return list.join(", ")
}

function has(text, tag) {
  return tags(text).some((each) => each.toLowerCase() === tag.toLowerCase())
}

/** A tag where there is one of that name, else the words wherever they are. */
function remove(text, tag) {
  if (has(text, tag)) return joined(tags(text).filter((each) => each.toLowerCase() !== tag.toLowerCase()))
  return tidy(text.replace(anywhere(tag), ""))
}

/** The words in any case, whole: `cat` is not found in `catalogue`. */
function anywhere(words) {
  const escaped = words.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
  const start = /^[\p{L}\p{N}_]/u.test(words) ? "(?<![\\p{L}\\p{N}_])" : ""
  const end = /[\p{L}\p{N}_]$/u.test(words) ? "(?![\\p{L}\\p{N}_])" : ""
  return new RegExp(start + escaped + end, "giu")
}

/** Without what is left over where something went: doubled spaces and commas. */
function tidy(text) {
  return text.replace(/[ \t]{2,}/g, " ").replace(/\s+,/g, ",").replace(/,(\s*,)+/g, ",").replace(/^[\s,]+|[\s,]+$/g, "")
}
