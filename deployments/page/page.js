// The page of Sound Sentry: sends recordings to the service and shows the answers.
// Everything from the network or from a file is put into the page as text, never as markup.

import { css, palette, shade, sign } from './colours.js'
import { explainGauge, fillGauge, scaleOf } from './gauge.js'
import { showRow } from './list.js'
import { canListen, listen } from './live.js'
import { canRecord, openMicrophone, recordFrom } from './microphone.js'
import { asCsv, asProblem, dropped, isWaited, makeQueue } from './queue.js'
import { Problem, ask, judge } from './service.js'
import WaveSurfer from './vendor/wavesurfer.esm.js'
import { $, clock, element, headline, odds, percent } from './words.js'

const WAVEFORM_RATE = 16000
const WAVEFORM_HEIGHT = 96
const REPORT_PEAKS = 1000
const STRIP_HEIGHT = 32
const COLUMNS_A_STEP = 10 // of the strip; enough to draw its gaps where the lanes have theirs
const MOST_COLUMNS = 16000
const LEAST_REACH = 1 // the score at the end of the drawing of an explanation, if all its scores are nearer to 0
const DISAGREEMENT = 0.5 // two stretches whose probabilities differ more may be of a human and of a machine

let current = null // the entry of the queue that is shown
let verdict = null // its answer, while that is shown
let recording = null // from the microphone, while it is on
let wave = null // WaveSurfer that shows and plays the recording
let position = 0 // of the playhead, in seconds
let peaks = [] // of the waveform, for the report
let info = null // the answer of /info: the limits of an upload, the thresholds, the sentence of each word
const infos = new Map() // each answer of /info by the SHA-256 of its model, which may change while the page is open

// ---- words

function sentence(word) {
  const sentences = { ...info.reasons, ...info.warnings }
  if (Object.hasOwn(sentences, word)) return sentences[word]
  const words = word.replaceAll('_', ' ')
  return `${words.charAt(0).toUpperCase()}${words.slice(1)}.`
}

// ---- the queue of recordings

const queue = makeQueue({
  async judge({ file, chosen }, signal, tell) {
    await introduced // it loads `info`, which has the sentence of each word
    if (!info) await learn(signal)
    const answer = await judge(file, chosen, info, signal, tell)
    await learnModel(answer, signal)
    return answer
  },
  changed(entry) {
    renew(entry)
    if (entry === current) present(entry)
    showCompared()
  },
  moved: renew,
})

const acts = { show: look, cancel: queue.cancel, compare }

// Adds recordings, given as {file, name}, to the queue, and shows the first of them.
async function choose(files) {
  $('left-out').textContent = ''
  if (files.some(isInFolder) && !(await knowsEndings())) return
  const visible = files.filter((file) => !isHidden(file))
  const recordings = visible.filter((file) => !isInFolder(file) || isSound(file))
  if (!recordings.length) {
    showProblem(new Problem('No recording', 'No file in this folder has an accepted format. Choose another folder.'))
    return
  }
  current = null
  look(queue.add(recordings, options())[0])
  const others = visible.length - recordings.length
  const words = others === 1 ? '1 file is not a recording and was' : `${others} files are not recordings and were`
  if (others) $('left-out').textContent = `${words} left out.`
}

// Whether the service has said which files of a folder are recordings. If it does not, the page shows why.
async function knowsEndings() {
  await introduced
  try {
    if (!info) await learn()
    return true
  } catch (error) {
    showProblem(asProblem(error))
    return false
  }
}

const isInFolder = ({ name }) => name.includes('/')

// As on the command line: a hidden folder that was chosen itself is searched.
const isHidden = ({ name }) => name.split('/').slice(1).some((part) => part.startsWith('.'))

// Whether a file of a folder is a recording. A file that was chosen by itself is always sent: the service decides.
const isSound = ({ name }) => info.endings.some((ending) => name.toLowerCase().endsWith(ending))

function look(entry) {
  current = entry
  queue.entries.forEach(renew)
  present(entry)
}

// Shows an entry outside its row: its answer, its problem, or that it was cancelled.
function present({ state, file, answer, problem, seconds, chosen, name }) {
  forget()
  $('result').hidden = true
  if (state === 'cancelled') say('Cancelled.')
  if (state === 'done') {
    verdict = { ...answer } // a new object each time: sound that is still decoded for an earlier one is then dropped
    show(verdict)
    const time = seconds === undefined ? '' : `: answered in ${seconds.toFixed(1)} seconds` // a stream has no such time
    say(`${answer.overall}${time}.`)
    showSound(file, chosen, verdict)
  }
  showProblem(problem, name) // last, because it takes the focus
}

// A screen reader reads the text again each time it is set.
function say(words) {
  if ($('status').textContent !== words) $('status').textContent = words
}

function renew(entry) {
  showRow($('queue-rows'), entry, acts, entry === current)
  showWork()
}

function showWork() {
  const { entries } = queue
  const waited = entries.filter(isWaited)
  const cancelled = entries.filter(({ state }) => state === 'cancelled').length
  $('queue').hidden = entries.length < 2
  $('analyse').disabled = entries.length === 0
  $('analyse').textContent = entries.length > 1 ? 'Analyse all again' : 'Analyse'
  const isCancelFocused = document.activeElement === $('cancel')
  $('progress').hidden = $('cancel').hidden = waited.length === 0
  if (isCancelFocused && $('cancel').hidden) $('file').focus() // else the focus would be lost with the button
  $('form').setAttribute('aria-busy', waited.length > 0)
  $('cancel').textContent = waited.length > 1 ? 'Cancel all' : 'Cancel'
  const done = `${entries.length - waited.length - cancelled} of ${entries.length} done`
  $('queue-state').textContent = cancelled ? `${done}, ${cancelled} cancelled` : done
  const share = entries.length > 1 ? 1 - waited.length / entries.length : waited[0]?.done
  if (share) $('progress').value = share
  else $('progress').removeAttribute('value')
  if (current && isWaited(current)) say(`${current.doing}: ${current.name}`)
  else if (current?.state === 'failed') say('')
}

function analyse() {
  for (const entry of queue.entries) queue.again(entry, options())
}

function analyseCurrent() {
  queue.again(current, options())
}

function cancelAll() {
  queue.entries.forEach(queue.cancel)
}

function clear() {
  queue.clear()
  current = null
  forget()
  $('queue-rows').replaceChildren()
  $('result').hidden = true
  $('left-out').textContent = ''
  say('')
  showProblem(null)
  showCompared()
  showWork()
  $('file').focus()
}

// ---- two answers side by side

// At most two entries are ticked. A third one unticks the one that was ticked first.
let compared = []

function compare(entry) {
  compared = compared.filter((other) => other !== entry)
  if (entry.row.compare.checked) compared.push(entry)
  while (compared.length > 2) compared.shift().row.compare.checked = false
  showCompared()
  if (compared.length === 2) $('compare').scrollIntoView({ block: 'nearest' })
}

function showCompared() {
  compared = compared.filter((entry) => queue.entries.includes(entry) && entry.row?.compare.checked)
  $('compare').hidden = compared.length < 2
  $('sides').replaceChildren(...(compared.length < 2 ? [] : compared.map(sideOf)))
}

function sideOf({ name, answer, chosen }) {
  const gauge = element('div', { className: 'gauge', role: 'img' })
  fillGauge(gauge, answer, scaleOf(infoOf(answer), chosen.operating_point))
  const facts = element('dl')
  fillList(facts, factsOf(answer))
  const notes = [...answer.reasons, ...answer.warnings].map((word) => element('li', {}, sentence(word)))
  return element(
    'section',
    {},
    element('h3', {}, name),
    element('p', { className: 'side-overall' }, answer.overall),
    gauge,
    facts,
    element('ul', { className: 'notes' }, ...notes),
  )
}

// ---- the form

// The options of the form.
function options() {
  const chosen = {
    use_diarization: $('diarize').checked,
    operating_point: $('operating-point').value,
    explain: $('explain').checked,
    channels: $('split').checked ? 'split' : 'mix',
  }
  if (chosen.use_diarization && $('num-speakers').value) chosen.num_speakers = $('num-speakers').value
  if ($('track').value) chosen.track = $('track').value // without it the service refuses a file with several tracks
  return chosen
}

function showCount() {
  $('count').hidden = $('num-speakers').disabled = !$('diarize').checked // a hidden invalid number would block the form
}

// Scrolls to the error, because it may be out of sight, far above the place where a file was dropped.
function showProblem(problem, name = '') {
  $('problem').hidden = !problem
  $('problem-file').textContent = name
  $('problem-title').textContent = problem?.title ?? ''
  $('problem-detail').textContent = problem?.message ?? ''
  if (!problem) return
  $('problem').focus({ preventScroll: true })
  $('problem').scrollIntoView({ block: 'center' })
}

// ---- the answer

function show(answer) {
  $('name').textContent = current.name
  $('overall').textContent = answer.overall
  $('meaning').textContent = Object.hasOwn(info.meanings, answer.overall) ? info.meanings[answer.overall] : ''
  showDecider(answer)
  $('verdict').dataset.overall = answer.overall
  $('reasons').replaceChildren(...answer.reasons.map((word) => element('li', {}, sentence(word))))
  $('warnings').replaceChildren(...answer.warnings.map((word) => element('li', {}, sentence(word))))
  showGauge(answer)
  showFacts(answer)
  showExact(answer)
  $('suggestion').hidden = !mayBeSeveral(answer)
  markOld()
  $('result').hidden = false // before showTracks, which measures a width
  showTracks(answer)
  showExplanation(answer)
  showDetails(answer)
  $('overall').focus({ preventScroll: true })
  $('verdict').scrollIntoView({ block: 'nearest' })
}

function markOld() {
  $('old').hidden = !verdict || JSON.stringify(current.chosen) === JSON.stringify(options())
}

// Whether a human and a machine may speak in turn, in a recording judged as one speaker's.
function mayBeSeveral({ details, decided_by, duration_config, channels }) {
  if (duration_config.use_diarization || channels.length) return false
  const probabilities = details.map((detail) => detail.probability)
  return decided_by !== null || Math.max(...probabilities) - Math.min(...probabilities) > DISAGREEMENT
}

function tellApart() {
  $('diarize').checked = true
  showCount()
  analyseCurrent()
}

function showDecider({ decided_by: part }) {
  $('decided').hidden = part === null
  if (part === null) return
  const name = part.speaker ?? part.channel ?? 'a passage'
  $('decided').textContent = `Decided by ${name}, ${clock(part.start)} – ${clock(part.end)}.`
}

function showGauge(answer) {
  const scale = scaleOf(infoOf(answer), current.chosen.operating_point)
  fillGauge($('gauge'), answer, scale)
  $('reading').hidden = $('gauge').hidden
  $('reading-text').textContent = explainGauge(scale)
}

function showFacts(answer) {
  fillList($('facts'), factsOf(answer))
}

function factsOf(answer) {
  const facts = []
  if (answer.mean_probability !== null) {
    const { probability, interval } = headline(answer)
    facts.push(['Probability of machine', percent(probability)])
    const [low, high] = interval.map(percent)
    facts.push(low === high ? ['Likely', low] : ['Likely between', `${low} and ${high}`])
    if (!answer.decided_by) facts.push(['The speech is', odds(answer.score)])
    else if (!answer.decided_by.channel) {
      facts.push(['Probability for the whole recording', percent(answer.mean_probability)])
    }
  }
  facts.push(['Speech', `${answer.speech_seconds.toFixed(1)} s of ${answer.duration_seconds.toFixed(1)} s`])
  facts.push(['Format', answer.original_format.toUpperCase()])
  return facts
}

// The facts again with exact values and technical terms, for a report.
function showExact(answer) {
  const facts = []
  if (answer.mean_probability !== null) {
    const { probability, interval } = headline(answer)
    facts.push(['Probability', probability.toFixed(4)])
    facts.push(['80 % interval', interval.map((bound) => bound.toFixed(4)).join(' to ')])
    facts.push(['Log-likelihood ratio of the whole', answer.score.toFixed(4)])
    facts.push(['Confidence |2p − 1| of the whole', percent(answer.confidence)])
  }
  const { operating_points: points, decision } = infoOf(answer)
  const { threshold } = points[current.chosen.operating_point]
  facts.push(['Operating point', `${current.chosen.operating_point}, threshold ${threshold.toFixed(4)}`])
  facts.push(['Prior', decision.prior])
  facts.push(['Model', answer.model.name])
  facts.push(['SHA-256 of the model', answer.model.sha256])
  if (answer.file_sha256) facts.push(['SHA-256 of the file', answer.file_sha256])
  fillList($('exact'), facts)
}

function fillList(list, facts) {
  list.replaceChildren(
    ...facts.map(([name, value]) => element('div', {}, element('dt', {}, name), element('dd', {}, value))),
  )
}

function showExplanation({ explanation }) {
  $('explanation').hidden = !explanation
  if (!explanation) return
  const groups = [
    ['Moments', explanation.moments],
    ['Bands of frequency', explanation.bands],
    ['Layers of the network', explanation.layers],
  ]
  // One scale for all, so that a longer bar always says more, and evidence that says little has a short bar.
  const scores = groups.flatMap(([, shares]) => shares.flatMap((share) => [share.score, ...(share.humans ?? [])]))
  const most = Math.max(LEAST_REACH, ...scores.map(Math.abs))
  $('shares').replaceChildren(
    ...groups.flatMap(([title, shares]) =>
      shares.length
        ? [element('h4', {}, title), element('ul', { className: 'shares' }, ...shares.map((share) => drawShare(share, most)))]
        : [],
    ),
  )
}

// A share of the explanation. `most` is the score at the end of the drawing.
function drawShare({ sentence: words, score, humans, speaker }, most) {
  const place = (className, low, high) => {
    const made = element('span', { className })
    made.style.left = `${50 + (50 * low) / most}%`
    made.style.width = `${(50 * (high - low)) / most}%`
    return made
  }
  const bar = place(score > 0 ? 'share machine' : 'share human', Math.min(score, 0), Math.max(score, 0))
  const usual = humans ? [place('usual', ...humans)] : []
  const track = element('span', { className: 'share-track', ariaHidden: 'true' }, bar, ...usual)
  return element('li', {}, track, element('span', {}, speaker ? `${speaker}, ${words}` : words))
}

function showDetails({ details }) {
  const colours = palette()
  const named = details.some((detail) => detail.speaker !== null)
  $('details').hidden = details.length === 0
  $('speaker-column').hidden = !named
  $('rows').replaceChildren(
    ...details.map((detail) => {
      const time = `${clock(detail.start)} – ${clock(detail.end)}`
      const go = element('button', { type: 'button', className: 'plain' }, time)
      go.setAttribute('aria-label', `Go to ${time}`)
      go.addEventListener('click', () => seek(detail.start))
      const swatch = element('span', { className: 'swatch sign' })
      sign(swatch, detail, colours)
      return element(
        'tr',
        {},
        element('td', {}, go),
        ...(named ? [element('td', {}, detail.speaker ?? '')] : []),
        element('td', {}, detail.result),
        element('td', {}, swatch, percent(detail.probability)),
      )
    }),
  )
}

// ---- waveform, heat strip and lanes, on one axis of time

function showTracks(answer) {
  position = 0
  $('zoom').max = Math.max(1, Math.ceil(answer.duration_seconds / 15))
  $('zoom').value = 1
  $('zoom-label').hidden = answer.duration_seconds < 30
  $('strip').setAttribute('aria-valuemax', answer.duration_seconds)
  paint(answer)
  stretch()
  place(0)
}

// The strip is as high as the moment is machine-like, and empty where nobody speaks: no lane has a turn there.
function paintStrip(answer, colours) {
  const { timeline, duration_seconds: duration } = answer
  const steps = Math.max(1, Math.round(duration / timeline.step_seconds))
  const heat = $('heat')
  heat.width = steps * Math.max(1, Math.min(COLUMNS_A_STEP, Math.floor(MOST_COLUMNS / steps)))
  heat.height = STRIP_HEIGHT
  const context = heat.getContext('2d')
  context.fillStyle = css(colours.none)
  context.fillRect(0, 0, heat.width, STRIP_HEIGHT)
  for (let x = 0; x < heat.width; x++) {
    const p = probabilityAt(((x + 0.5) * duration) / heat.width, answer)
    if (p === null) continue
    const height = Math.round(STRIP_HEIGHT * (0.15 + 0.85 * p))
    context.fillStyle = css(shade(p, colours))
    context.fillRect(x, STRIP_HEIGHT - height, 1, height)
  }
}

function paint(answer) {
  const { details, speakers, channels, duration_seconds: duration } = answer
  const colours = palette()
  paintStrip(answer, colours)
  const lanes = speakers.length
    ? speakers.map((speaker) => ({
        name: `${nameOf(speaker)}: ${speaker.result}, ${percent(speaker.probability)}, ${speaker.speech_seconds.toFixed(1)} s of speech`,
        turns: details.filter((detail) => detail.speaker === speaker.speaker),
      }))
    : [{ name: 'Speech', turns: details }]
  $('lanes').replaceChildren(
    ...lanes.flatMap(({ name, turns }) => {
      const lane = element('div', { className: 'lane' })
      for (const turn of turns) {
        const title = `${clock(turn.start)} – ${clock(turn.end)}: ${turn.result}, ${percent(turn.probability)}`
        const made = element('div', { className: 'turn sign', title })
        made.style.left = `${(100 * turn.start) / duration}%`
        made.style.width = `${(100 * (turn.end - turn.start)) / duration}%`
        sign(made, turn, colours)
        made.addEventListener('click', () => seek(turn.start))
        lane.append(made)
      }
      return turns.length || speakers.length ? [element('p', { className: 'lane-name' }, name), lane] : []
    }),
    ...channels.filter(hasNoLane).map((channel) => element('p', { className: 'lane-name' }, explain(channel))),
  )
}

function nameOf({ speaker, channel }) {
  return channel && channel !== speaker ? `${speaker} on ${channel}` : speaker
}

// A channel that was not judged by itself, or on which nobody speaks.
function hasNoLane({ note, result }) {
  return note !== null || result === 'No Speech'
}

function explain({ channel, note, result }) {
  if (note?.startsWith('same_as_')) return `${channel}: the same as ${note.slice('same_as_'.length)}`
  return `${channel}: ${note ?? result}`
}

function stretch() {
  const zoom = Number($('zoom').value)
  const duration = verdict.duration_seconds
  $('inner').style.width = `${100 * zoom}%`
  const room = Math.max(4, Math.floor($('inner').clientWidth / 70))
  const step = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800].find((s) => duration / s <= room) ?? 3600
  const marks = []
  for (let t = 0; t < duration; t += step) {
    const mark = element('span', {}, clock(t, step < 1 ? 1 : 0))
    mark.style.left = `${(100 * t) / duration}%`
    marks.push(mark)
  }
  $('axis').replaceChildren(...marks)
  follow()
}

function probabilityAt(seconds, { timeline, details }) {
  const turn = details.find((detail) => detail.start <= seconds && seconds < detail.end)
  if (!turn) return null
  return timeline.probability[Math.floor((seconds - timeline.start) / timeline.step_seconds)] ?? turn.probability
}

function describe(seconds) {
  const p = probabilityAt(seconds, verdict)
  return `${clock(seconds)}, ${p === null ? 'nobody speaks' : `${percent(p)} machine`}`
}

function place(seconds) {
  position = Math.min(Math.max(0, seconds), verdict.duration_seconds)
  $('playhead').style.left = `${(100 * position) / verdict.duration_seconds}%`
  $('strip').setAttribute('aria-valuenow', position.toFixed(1))
  $('strip').setAttribute('aria-valuetext', describe(position))
  $('readout').textContent = describe(position)
}

function follow() {
  const tracks = $('tracks')
  const x = ($('inner').clientWidth * position) / verdict.duration_seconds
  if (x < tracks.scrollLeft || x > tracks.scrollLeft + tracks.clientWidth) {
    tracks.scrollLeft = x - tracks.clientWidth / 10
  }
}

function seek(seconds) {
  place(seconds)
  wave?.setTime(position)
  follow()
}

function timeAt(event) {
  const box = $('inner').getBoundingClientRect()
  return ((event.clientX - box.left) / box.width) * verdict.duration_seconds
}

// ---- the sound

async function decode(blob) {
  try {
    const context = new OfflineAudioContext(1, 1, WAVEFORM_RATE)
    return await context.decodeAudioData(await blob.arrayBuffer())
  } catch {
    return null // a format that this browser does not know
  }
}

// The loudest sample of all channels in each of `count` stretches of the sound: what a waveform of that width can show.
function peaksOf(sound, seconds, count) {
  const peaks = new Float32Array(count)
  const width = (seconds * sound.sampleRate) / count
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    const samples = sound.getChannelData(channel)
    for (let i = 0; i < count; i++) {
      const end = Math.min(Math.ceil((i + 1) * width), samples.length)
      for (let j = Math.floor(i * width); j < end; j++) peaks[i] = Math.max(peaks[i], Math.abs(samples[j]))
    }
  }
  return peaks
}

async function showSound(file, { track }, answer) {
  const isShort = answer.duration_seconds <= info.limits.max_duration_seconds // else it would fill the memory
  const sound = isShort && !track ? await decode(file) : null // a browser decodes the track that it prefers
  if (answer !== verdict) return
  $('track-note').hidden = !track
  $('mute-note').hidden = sound !== null || Boolean(track)
  $('waveform').hidden = $('play').hidden = sound === null
  if (sound !== null) showWaveform(sound, answer)
}

function relative(values) {
  const most = Math.max(...values) || 1
  return Array.from(values, (value) => value / most)
}

function showWaveform(sound, answer) {
  const duration = answer.duration_seconds
  const colour = getComputedStyle(document.documentElement).getPropertyValue('--wave').trim()
  const container = element('div')
  wave = WaveSurfer.create({
    container,
    backend: 'WebAudio', // plays what was decoded: no blob: address, which a strict policy forbids
    height: WAVEFORM_HEIGHT,
    waveColor: colour,
    progressColor: colour,
    cursorWidth: 0,
    normalize: true,
    hideScrollbar: true,
    interact: false,
  })
  adoptStyle(wave.getWrapper().getRootNode())
  $('waveform').replaceChildren(container)
  wave.getMediaElement().buffer = sound
  peaks = relative(peaksOf(sound, duration, REPORT_PEAKS))
  wave.load('', [peaksOf(sound, duration, Math.min(20000, Math.ceil(duration * 50)))], duration)
  wave.on('timeupdate', (seconds) => {
    place(seconds)
    if (wave?.isPlaying()) follow()
  })
  for (const event of ['play', 'pause', 'finish']) wave.on(event, () => ($('play').textContent = wave?.isPlaying() ? 'Pause' : 'Play'))
}

// WaveSurfer has an inline style, which a strict Content-Security-Policy blocks. So the style becomes a constructed
// sheet before WaveSurfer enters the page; else the browser would report an error.
function adoptStyle(root) {
  const style = root.querySelector('style')
  const sheet = new CSSStyleSheet()
  sheet.replaceSync(style.textContent)
  root.adoptedStyleSheets = [sheet]
  style.remove()
}

function forget() {
  wave?.pause()
  wave?.getMediaElement().destroy()
  wave?.destroy()
  wave = null
  verdict = null
  peaks = []
  $('waveform').replaceChildren()
  $('play').textContent = 'Play'
}

async function toggle() {
  if (!wave) return
  await wave.getMediaElement().audioContext.resume()
  await wave.playPause()
}

// ---- the microphone: a recording to be judged, or a stream that is judged while it is made

async function record() {
  if (recording) {
    recording.stop()
    return
  }
  $('record').disabled = $('guard').disabled = true // a second click would begin a second recording
  try {
    recording = recordFrom(await openMicrophone(), { tick: tellTime })
  } catch (error) {
    $('guard').disabled = false
    showProblem(asProblem(error))
    return
  } finally {
    $('record').disabled = false
  }
  showRecording(true)
  $('record').focus() // a button that is disabled loses it
  const file = await recording.file
  recording = null
  showRecording(false)
  choose([{ file, name: file.name }])
}

function showRecording(on) {
  $('recorded').hidden = !on
  $('guard').disabled = on
  $('record').textContent = on ? 'Stop and analyse' : 'Record with the microphone'
  $('record').classList.toggle('on', on)
}

// Shows how long the microphone has been on. Turns it off a second before the longest recording that can be sent: the
// sound may be a little longer than the time measured here.
function tellTime(seconds) {
  const most = (info?.jobs ?? info)?.limits.max_duration_seconds ?? Infinity
  const time = clock(Math.floor(seconds), 0)
  $('recorded').textContent = most < Infinity ? `${time} of ${clock(most, 0)}` : time
  if (seconds >= most - 1) recording?.stop()
}

async function listenLive() {
  $('guard').disabled = $('record').disabled = true
  showProblem(null)
  $('left-out').textContent = ''
  const { use_diarization, operating_point } = options()
  const chosen = { use_diarization, operating_point, explain: false, channels: 'mix' } // a stream takes the first two
  try {
    await learn() // each time, because it asks for a key if there is none, or none that is valid
    const { file, answer, problem, reason } = await listen(chosen, scaleOf(info, operating_point), sentence)
    const { name } = file
    if (answer) {
      await learnModel(answer)
      look(queue.keep({ file, name, chosen, answer: { ...answer, filename: name } }))
      $('left-out').textContent = reason
    } else {
      await choose([{ file, name }])
      $('left-out').textContent = `${problem.message} The sound up to then is now judged like any other recording.`
    }
  } catch (error) {
    showProblem(asProblem(error))
  } finally {
    $('guard').disabled = $('record').disabled = false
  }
}

function save(content, type, name) {
  const address = URL.createObjectURL(new Blob([content], { type }))
  element('a', { href: address, download: name }).click()
  setTimeout(() => URL.revokeObjectURL(address), 1000)
}

function saveJson() {
  save(JSON.stringify(verdict, null, 2), 'application/json', `${verdict.filename ?? 'recording'}.json`)
}

async function saveReport() {
  showProblem(null)
  const body = new Blob([JSON.stringify({ ...verdict, peaks })], { type: 'application/json' })
  const name = `${verdict.filename ?? 'recording'}.report.html`
  try {
    save(await ask('report', { method: 'POST', body }, (response) => response.text()), 'text/html', name)
  } catch (error) {
    showProblem(error)
  }
}

function saveCsv() {
  save(asCsv(queue.entries), 'text/csv', 'answers.csv')
}

function span(seconds) {
  return seconds < 7200 ? `${+(seconds / 60).toFixed(1)} minutes` : `${+(seconds / 3600).toFixed(1)} hours`
}

// Asks the service what it takes and how it judges, and tells the user.
async function learn(signal) {
  info = await ask('info', { signal })
  infos.set(info.model.sha256, info)
  const { limits, supported_formats: supported } = info
  $('file').accept = ['audio/*', 'video/*', ...info.endings].join()
  const formats = supported.map((name) => name.toUpperCase()).join(', ')
  const most = (info.jobs ?? info).limits
  $('accepted').textContent = `${formats}, up to ${most.max_upload_mib} MiB and ${span(most.max_duration_seconds)}`
  const length = `${limits.max_upload_mib} MiB or ${span(limits.max_duration_seconds)}`
  if (info.jobs) $('kept').textContent = `A recording over ${length} stays on the service's disk until it is judged.`
}

// Asks again if another model than any before has answered. Without its thresholds, the answer is still worth showing.
async function learnModel({ model }, signal) {
  if (!infos.has(model.sha256)) await learn(signal).catch(() => {})
}

function infoOf({ model }) {
  return infos.get(model.sha256) ?? info
}

async function introduce() {
  try {
    await learn()
    const { version } = await ask('./')
    $('version').textContent = `Version ${version}`
  } catch (error) {
    if (!info) $('accepted').textContent = error.message
  }
}

$('form').addEventListener('submit', (event) => {
  event.preventDefault()
  analyse()
})
for (const input of [$('file'), $('folder')]) {
  input.addEventListener('change', () => {
    const files = [...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name }))
    if (files.length) choose(files)
    input.value = '' // so that the same file can be chosen again
  })
}
$('choose-folder').addEventListener('click', () => $('folder').click())
$('cancel').addEventListener('click', cancelAll)
$('clear').addEventListener('click', clear)
$('save-csv').addEventListener('click', saveCsv)
$('form').addEventListener('input', markOld)
$('again').addEventListener('click', analyseCurrent)
$('tell-apart').addEventListener('click', tellApart)
$('record').addEventListener('click', record)
$('guard').addEventListener('click', listenLive)
$('save').addEventListener('click', saveJson)
$('diarize').addEventListener('change', showCount)
$('save-report').addEventListener('click', saveReport)
$('play').addEventListener('click', toggle)
$('zoom').addEventListener('input', stretch)

// A file may be dropped anywhere on the page; dropped beside the box, it would replace the page.
for (const kind of ['dragenter', 'dragover']) {
  addEventListener(kind, (event) => {
    event.preventDefault()
    $('drop').classList.add('over')
  })
}
addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) $('drop').classList.remove('over')
})
addEventListener('drop', async (event) => {
  event.preventDefault()
  $('drop').classList.remove('over')
  try {
    const files = await dropped(event.dataTransfer)
    if (files.length) choose(files)
  } catch {
    showProblem(new Problem('Not readable', 'The browser could not read what was dropped. Choose the files instead.'))
  }
})

for (const track of ['waveform', 'strip']) {
  $(track).addEventListener('click', (event) => seek(timeAt(event)))
}
$('strip').addEventListener('pointermove', (event) => {
  if (verdict) $('readout').textContent = describe(Math.min(timeAt(event), verdict.duration_seconds))
})
$('strip').addEventListener('pointerleave', () => {
  if (verdict) $('readout').textContent = describe(position)
})
$('strip').addEventListener('keydown', (event) => {
  const step = verdict.timeline.step_seconds
  const targets = {
    ArrowLeft: position - step,
    ArrowDown: position - step,
    ArrowRight: position + step,
    ArrowUp: position + step,
    PageDown: position - 10 * step,
    PageUp: position + 10 * step,
    Home: 0,
    End: verdict.duration_seconds,
  }
  if (event.key === ' ') toggle()
  else if (event.key in targets) seek(targets[event.key])
  else return
  event.preventDefault()
})
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  if (!verdict) return
  paint(verdict)
  showDetails(verdict)
})
addEventListener('resize', () => verdict && stretch())

showCount() // a page that is loaded again keeps its ticks
$('record').hidden = !canRecord()
$('guard').hidden = !canListen()
const introduced = introduce()
