// The recordings that were chosen, each with its state and its answer or problem; two are judged at a time.

import { Problem } from './service.js'
import { headline } from './words.js'

const AT_ONCE = 2

export const isWaited = ({ state }) => state === 'waiting' || state === 'running'

// `judge(entry, signal, tell)` returns the answer for an entry. `changed(entry)` is called after each change of its
// state, and `moved(entry)` when there is progress within a state. An entry that is judged again gets its earlier answer
// back if that is cancelled or fails.
export function makeQueue({ judge, changed, moved }) {
  const entries = []

  function add(files, chosen) {
    const added = files.map(({ file, name }) => ({ file, name }))
    entries.push(...added)
    for (const entry of added) again(entry, chosen)
    return added
  }

  // Adds a recording that already has its answer.
  function keep(judged) {
    const entry = { ...judged, state: 'done', problem: null, doing: 'Waiting', done: null }
    entries.push(entry)
    changed(entry)
    return entry
  }

  function again(entry, chosen) {
    entry.abort?.abort()
    if (entry.state === 'done') {
      const { state, answer, seconds } = entry
      entry.earlier = { state, answer, seconds, chosen: entry.chosen }
    }
    Object.assign(entry, { chosen, state: 'waiting', answer: null, problem: null, doing: 'Waiting', done: null })
    entry.abort = new AbortController()
    changed(entry)
    pump()
  }

  function cancel(entry) {
    if (!isWaited(entry)) return
    Object.assign(entry, { state: 'cancelled' }, entry.earlier)
    entry.abort.abort()
    changed(entry)
    pump()
  }

  function pump() {
    const running = entries.filter(({ state }) => state === 'running').length
    const next = entries.filter(({ state }) => state === 'waiting').slice(0, Math.max(0, AT_ONCE - running))
    next.forEach(run)
  }

  async function run(entry) {
    const mine = entry.abort
    const tell = (doing, done = null) => {
      if (entry.abort !== mine || entry.state !== 'running') return
      Object.assign(entry, { doing, done })
      moved(entry)
    }
    const started = performance.now()
    Object.assign(entry, { state: 'running', doing: 'Analysing' })
    changed(entry)
    const result = await judge(entry, mine.signal, tell).then(
      (answer) => ({ state: 'done', answer, seconds: (performance.now() - started) / 1000 }),
      (error) => ({ state: 'failed', ...entry.earlier, problem: asProblem(error) }),
    )
    if (entry.abort !== mine || entry.state !== 'running') return // it was cancelled, or is judged again
    Object.assign(entry, result)
    pump() // before the answer is drawn: if that fails, the others are judged nevertheless
    changed(entry)
  }

  function clear() {
    entries.forEach(cancel)
    entries.length = 0
  }

  return { entries, add, keep, again, cancel, clear }
}

export const asProblem = (error) => (error instanceof Problem ? error : new Problem('The page failed', String(error)))

// ---- files and folders

// The files that were dropped, as {file, name}, including all files in folders. `transfer` can only be read before the
// first wait.
export function dropped(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === 'file')
  const found = items.map((item) => item.webkitGetAsEntry() ?? item.getAsFile())
  return Promise.all(found.map((one) => (one instanceof File ? [{ file: one, name: one.name }] : unfold(one)))).then(
    (lists) => lists.flat(),
  )
}

async function unfold(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject))
    return [{ file, name: entry.fullPath.replace(/^\//, '') }]
  }
  const reader = entry.createReader()
  const inside = []
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)) // up to 100 at a time
    if (!some.length) break
    inside.push(...some)
  }
  return (await Promise.all(inside.map(unfold))).flat()
}

// ---- CSV, with the columns of the command line

const COLUMNS = [
  'path', 'speaker', 'channel', 'result', 'probability', 'interval_low', 'interval_high', 'mean_probability', 'score',
  'duration_seconds', 'speech_seconds', 'decided_by', 'decided_start', 'decided_end', 'reasons', 'warnings', 'note',
  'error',
] // prettier-ignore

export function asCsv(entries) {
  const rows = entries.filter((entry) => !isWaited(entry)).flatMap(rowsOf)
  return [COLUMNS, ...rows.map((row) => COLUMNS.map((name) => cell(row[name])))].map((row) => `${row.join()}\n`).join('')
}

function rowsOf({ name: path, answer, problem, state }) {
  if (!answer) return [{ path, error: problem ? problem.message : state }]
  const { decided_by: part, reasons, warnings, speakers, channels, ...rest } = answer
  const { probability, interval } = headline(answer)
  const bounds = (pair) => ({ interval_low: pair?.[0], interval_high: pair?.[1] })
  const whole = {
    ...rest,
    path,
    ...bounds(interval),
    result: answer.overall,
    probability,
    decided_by: part && (part.speaker ?? part.channel ?? 'passage'),
    decided_start: part?.start,
    decided_end: part?.end,
    reasons: reasons.join(';'),
    warnings: warnings.join(';'),
  }
  const withSpeakers = new Set(speakers.map(({ channel }) => channel))
  return [
    whole,
    ...speakers.map((speaker) => ({ ...speaker, path, ...bounds(speaker.interval) })),
    ...channels.filter(({ channel }) => !withSpeakers.has(channel)).map((channel) => ({ ...channel, path })),
  ]
}

// A name that looks like a formula would be computed by the program that opens the table.
function cell(value) {
  const text = String(value ?? '')
  const safe = typeof value === 'string' && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe
}
