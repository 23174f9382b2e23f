// Figures in the language of the front end: their sentences and heads; names of LoRAs and layers stay.

import { spoken } from "../page/words.js"

export function inLanguage({ verdict, advice, tables, curve, ...rest }) {
  return { ...rest, verdict: spoken(verdict), advice: spoken(advice), tables: tables.map(table), curve: curve && drawn(curve) }
}

function table({ title, corner, columns, lines, note, ...rest }) {
  const cells = (line) => line.cells.map((cell) => cell && [cell[0], cell[1], spoken(cell[2])])
  return {
    ...rest, title: spoken(title), corner: spoken(corner), columns: columns.map(spoken), note: spoken(note),
    lines: lines.map((line) => ({ ...line, name: named(line.name, corner), cells: cells(line) })),
  }
}

/** Of blocks the last one stands for all. */
function named(name, corner) {
  return corner === "block" ? spoken(name) : name
}

function drawn({ title, across, told, ...rest }) {
  return { ...rest, title: spoken(title), across: spoken(across), told: told.map(spoken) }
}
