// How many of what, and the marks of pictures, in the language of the page.

import { phrase, word } from "../page/words.js"

const MARKS = { // as the server names them
  "not saved": phrase("not saved"), unreadable: phrase("unreadable"), "unreadable caption": phrase("unreadable caption"),
  "no caption": phrase("no caption"), "trigger alone": phrase("trigger alone"), copy: phrase("copy"),
  "near copy": phrase("near copy"), small: phrase("small"), cropped: phrase("cropped"), blurred: phrase("blurred"),
  dark: phrase("dark"), bright: phrase("bright"), flat: phrase("flat"), "mask?": phrase("mask?"), shape: phrase("shape"),
  text: phrase("text"), long: phrase("long"), twice: phrase("twice"), weights: phrase("weights"),
  notAllowed: phrase("not allowed"), trigger: phrase("trigger"),
}

export function markWord(mark) {
  return Object.hasOwn(MARKS, mark) ? word(MARKS[mark]) : mark
}

export function pictures(n) {
  return n === 1 ? word("1 picture") : word("{n} pictures", { n })
}

export function captions(n) {
  return n === 1 ? word("1 caption") : word("{n} captions", { n })
}
