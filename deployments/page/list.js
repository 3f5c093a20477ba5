// The list of recordings on the page: one row per recording.

import { isWaited } from './queue.js'
import { element, headline, percent } from './words.js'

// Makes or renews the row of an entry. `acts` are {show, cancel, compare}, each called with the entry.
export function showRow(rows, entry, acts, isShown) {
  if (!entry.row) rows.append((entry.row = makeRow(entry, acts)).tr)
  const { name, sign, word, number, compare, cancel } = entry.row
  name.ariaCurrent = isShown
  word.textContent = wordOf(entry)
  number.textContent = numberOf(entry)
  sign.dataset.result = entry.answer?.overall ?? ''
  sign.hidden = !numberOf(entry)
  compare.disabled = !numberOf(entry)
  if (compare.disabled) compare.checked = false
  if (!isWaited(entry) && document.activeElement === cancel) name.focus() // a button that is hidden loses the focus
  cancel.hidden = !isWaited(entry)
}

function makeRow(entry, { show, cancel, compare }) {
  const row = {
    name: element('button', { type: 'button', className: 'plain' }, entry.name),
    sign: element('span', { className: 'swatch sign' }),
    word: element('span'),
    number: element('td'),
    compare: element('input', { type: 'checkbox', ariaLabel: `Compare ${entry.name}` }),
    cancel: element('button', { type: 'button', className: 'link', ariaLabel: `Cancel ${entry.name}` }, 'Cancel'),
  }
  row.name.addEventListener('click', () => show(entry))
  row.cancel.addEventListener('click', () => cancel(entry))
  row.compare.addEventListener('change', () => compare(entry))
  const cells = [[row.name], [row.sign, row.word, row.cancel]].map((parts) => element('td', {}, ...parts))
  row.tr = element('tr', {}, ...cells, row.number, element('td', {}, row.compare))
  return row
}

function wordOf({ state, answer, problem, doing, done }) {
  if (state === 'done') return answer.overall
  if (state === 'failed') return problem.title
  if (state === 'cancelled') return 'Cancelled'
  return done === null ? doing : `${doing}, ${percent(done)} done`
}

function numberOf({ answer }) {
  return answer?.mean_probability == null ? '' : percent(headline(answer).probability)
}
