// The page of Sound Sentry: sends a recording to /predict and shows the answer.
// Whatever came over the network or from a file enters the page as text, never as markup.

import WaveSurfer from './vendor/wavesurfer.esm.js'

const MEANINGS = {
  Real: 'This sounds like a human speaking.',
  Fake: 'This sounds like machine-made speech.',
  Inconclusive: 'The evidence does not settle it.',
  'No Speech': 'Nobody speaks in this recording, so there is nothing to judge.',
}

const WAVEFORM_RATE = 16000
const WAVEFORM_HEIGHT = 96

const $ = (id) => document.getElementById(id)

let file = null // the recording that was chosen last
let verdict = null // the answer that is shown
let request = null // AbortController of the analysis under way
let recorder = null // MediaRecorder while the microphone is on
let wave = null // WaveSurfer that shows and plays the recording
let position = 0 // of the playhead, in seconds
let limits = null // of an upload, from /info
let sentences = {} // of each reason and warning, from /info

// ---- words and numbers

function percent(p) {
  if (p > 0 && p < 0.01) return '< 1 %'
  if (p > 0.99 && p < 1) return '> 99 %'
  return `${Math.round(100 * p)} %`
}

function clock(seconds, digits = 1) {
  const minutes = Math.floor(seconds / 60)
  const rest = (seconds - 60 * minutes).toFixed(digits).padStart(digits ? 3 + digits : 2, '0')
  return `${minutes}:${rest}`
}

function sentence(word) {
  if (Object.hasOwn(sentences, word)) return sentences[word]
  const words = word.replaceAll('_', ' ')
  return `${words.charAt(0).toUpperCase()}${words.slice(1)}.`
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  made.append(...children) // strings become text
  return made
}

// ---- colours

function palette() {
  const style = getComputedStyle(document.documentElement)
  const colour = (name) => {
    const hex = style.getPropertyValue(name).trim()
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16))
  }
  return { stops: [colour('--human'), colour('--even'), colour('--machine')], none: colour('--none') }
}

function shade(p, { stops, none }) {
  if (p === null) return none
  const [from, to, share] = p < 0.5 ? [stops[0], stops[1], 2 * p] : [stops[1], stops[2], 2 * p - 1]
  return from.map((value, i) => Math.round(value + share * (to[i] - value)))
}

const css = (colour) => `rgb(${colour.join(' ')})`

// ---- asking the service

class Problem extends Error {
  constructor(title, detail) {
    super(detail)
    this.title = title
  }
}

// Where the service asks for a key, the page asks the user, once. The key stays in this tab and goes nowhere else.

const KEY = 'sound-sentry-key'
let asking = null // the promise of a key, while the form for it is shown

function askForKey(refused) {
  $('key-refused').hidden = !refused
  asking ??= new Promise((resolve) => {
    $('access').hidden = false
    $('key').focus()
    $('access').addEventListener(
      'submit',
      (event) => {
        event.preventDefault()
        sessionStorage.setItem(KEY, $('key').value.trim())
        $('key').value = ''
        $('access').hidden = true
        asking = null
        resolve()
      },
      { once: true },
    )
  })
  return asking
}

async function ask(path, options) {
  const headers = { Accept: 'application/json' }
  const key = sessionStorage.getItem(KEY)
  if (key) headers.Authorization = `Bearer ${key}`
  let response
  try {
    response = await fetch(path, { headers, ...options })
  } catch (error) {
    if (error.name === 'AbortError') throw error
    throw new Problem('No answer', 'The service cannot be reached, or closed the connection. Try again in a moment.')
  }
  if (response.status === 401) {
    if (sessionStorage.getItem(KEY) === key) sessionStorage.removeItem(KEY)
    if (!sessionStorage.getItem(KEY)) await askForKey(key !== null)
    return ask(path, options)
  }
  let body = null
  try {
    body = await response.json()
  } catch (error) {
    if (error.name === 'AbortError') throw error
  }
  if (response.ok && body !== null) return body
  throw new Problem(
    body?.title ?? 'Unexpected answer',
    body?.detail ?? `The service answered with status ${response.status}. Try again in a moment.`,
  )
}

async function analyse() {
  if (!file) return
  request?.abort()
  const mine = (request = new AbortController())
  const sent = file
  showProblem(null)
  $('result').hidden = true
  forget()
  const form = new FormData()
  form.append('audio', sent, sent.name)
  form.append('use_diarization', $('diarize').checked)
  form.append('operating_point', $('operating-point').value)
  form.append('channels', $('split').checked ? 'split' : 'mix')
  if ($('track').value) form.append('track', $('track').value) // else the service refuses a file that holds several
  const started = performance.now()
  $('status').textContent = `Analysing ${sent.name}`
  busy(true)
  const sound = decode(sent)
  try {
    if (limits && sent.size > limits.max_upload_mib * 2 ** 20) {
      throw new Problem('Upload too large', `The file is larger than ${limits.max_upload_mib} MiB. Send a part of it.`)
    }
    const answer = await ask('predict', { method: 'POST', body: form, signal: mine.signal })
    const seconds = ((performance.now() - started) / 1000).toFixed(1)
    await introduced // the words of the answer get their sentences from there
    if (mine.signal.aborted) return
    verdict = answer
    show(answer)
    $('status').textContent = `${answer.overall}: answered in ${seconds} seconds.`
    showWaveform(await sound, answer)
  } catch (error) {
    if (error.name === 'AbortError') return
    $('status').textContent = ''
    showProblem(error instanceof Problem ? error : new Problem('The page failed', String(error)))
  } finally {
    if (request === mine) busy(false)
  }
}

function busy(is) {
  $('progress').hidden = !is
  $('cancel').hidden = !is
  $('form').setAttribute('aria-busy', is)
}

function showProblem(problem) {
  $('problem').hidden = !problem
  $('problem-title').textContent = problem?.title ?? ''
  $('problem-detail').textContent = problem?.message ?? ''
}

// ---- the answer

function show(answer) {
  $('name').textContent = answer.filename ?? ''
  $('overall').textContent = answer.overall
  $('meaning').textContent = MEANINGS[answer.overall] ?? ''
  showDecider(answer)
  $('verdict').dataset.overall = answer.overall
  $('reasons').replaceChildren(...answer.reasons.map((word) => element('li', {}, sentence(word))))
  $('warnings').replaceChildren(...answer.warnings.map((word) => element('li', {}, sentence(word))))
  showGauge(answer)
  showFacts(answer)
  showTracks(answer)
  showDetails(answer)
  $('result').hidden = false
  $('result').scrollIntoView({ block: 'nearest' })
}

// The number to show: that of the part that decided, if one did.
function headline({ mean_probability, interval, decided_by }) {
  return decided_by ?? { probability: mean_probability, interval }
}

function showDecider({ decided_by: part }) {
  $('decided').hidden = part === null
  if (part === null) return
  const name = part.speaker ?? part.channel ?? 'a passage'
  $('decided').textContent = `Decided by ${name}, ${clock(part.start)} – ${clock(part.end)}.`
}

function showGauge(answer) {
  const { probability: p, interval } = headline(answer)
  $('gauge').hidden = p === null
  if (p === null) return
  const [low, high] = interval
  $('gauge').setAttribute(
    'aria-label',
    `Probability of machine-made speech ${percent(p)}, between ${percent(low)} and ${percent(high)}`,
  )
  $('gauge-mark').style.left = `${100 * p}%`
  $('gauge-interval').style.left = `${100 * low}%`
  $('gauge-interval').style.right = `${100 * (1 - high)}%`
}

function showFacts(answer) {
  const facts = []
  if (answer.mean_probability !== null) {
    const { probability, interval } = headline(answer)
    facts.push(['Probability of machine', percent(probability)])
    facts.push(['90 % interval', interval.map(percent).join(' to ')])
    if (answer.decided_by) {
      facts.push(['Of the whole recording', percent(answer.mean_probability)])
    } else {
      facts.push(['Confidence', percent(answer.confidence)])
      facts.push(['Log-likelihood ratio', answer.score.toFixed(2)])
    }
  }
  facts.push(['Speech', `${answer.speech_seconds.toFixed(1)} s of ${answer.duration_seconds.toFixed(1)} s`])
  facts.push(['Format', answer.original_format.toUpperCase()])
  facts.push(['Model', `${answer.model.name} (${answer.model.sha256.slice(0, 8)})`])
  $('facts').replaceChildren(
    ...facts.map(([name, value]) => element('div', {}, element('dt', {}, name), element('dd', {}, value))),
  )
}

function showDetails({ details, speakers }) {
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
      const swatch = element('span', { className: 'swatch' })
      swatch.style.backgroundColor = css(shade(detail.probability, colours))
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

function paint({ timeline, details, speakers, channels, duration_seconds: duration }) {
  const colours = palette()
  const heat = $('heat')
  heat.width = Math.max(1, Math.round(duration / timeline.step_seconds))
  const pixels = heat.getContext('2d').createImageData(heat.width, 1)
  for (let i = 0; i < heat.width; i++) {
    pixels.data.set([...shade(timeline.probability[i] ?? null, colours), 255], 4 * i)
  }
  heat.getContext('2d').putImageData(pixels, 0, 0)

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
        const made = element('div', { className: 'turn', title })
        made.style.left = `${(100 * turn.start) / duration}%`
        made.style.width = `${(100 * (turn.end - turn.start)) / duration}%`
        made.style.backgroundColor = css(shade(turn.probability, colours))
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

function probabilityAt(seconds) {
  const { timeline } = verdict
  return timeline.probability[Math.floor((seconds - timeline.start) / timeline.step_seconds)] ?? null
}

function describe(seconds) {
  const p = probabilityAt(seconds)
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

// The loudest sample of each of `count` stretches of the sound: what a waveform of that width can show.
function peaksOf(sound, seconds, count) {
  const samples = sound.getChannelData(0)
  const peaks = new Float32Array(count)
  const width = (seconds * sound.sampleRate) / count
  for (let i = 0; i < count; i++) {
    const end = Math.min(Math.ceil((i + 1) * width), samples.length)
    for (let j = Math.floor(i * width); j < end; j++) peaks[i] = Math.max(peaks[i], Math.abs(samples[j]))
  }
  return peaks
}

function showWaveform(sound, answer) {
  const duration = answer.duration_seconds
  $('mute-note').hidden = sound !== null
  $('waveform').hidden = $('play').hidden = sound === null
  if (sound === null || answer !== verdict) return
  const colour = getComputedStyle(document.documentElement).getPropertyValue('--wave').trim()
  wave = WaveSurfer.create({
    container: $('waveform'),
    backend: 'WebAudio', // plays what was decoded: no blob: address, which a strict policy forbids
    height: WAVEFORM_HEIGHT,
    waveColor: colour,
    progressColor: colour,
    cursorWidth: 0,
    normalize: true,
    hideScrollbar: true,
    interact: false,
  })
  adoptBlockedStyle(wave.getWrapper().getRootNode())
  wave.getMediaElement().buffer = sound
  wave.load('', [peaksOf(sound, duration, Math.min(20000, Math.ceil(duration * 50)))], duration)
  wave.on('timeupdate', (seconds) => {
    place(seconds)
    if (wave?.isPlaying()) follow()
  })
  for (const event of ['play', 'pause', 'finish']) wave.on(event, () => ($('play').textContent = wave?.isPlaying() ? 'Pause' : 'Play'))
}

// WaveSurfer brings its style inline, which a strict policy blocks; a constructed sheet is not inline.
function adoptBlockedStyle(root) {
  if (root.styleSheets.length) return
  const sheet = new CSSStyleSheet()
  sheet.replaceSync(root.querySelector('style').textContent)
  root.adoptedStyleSheets = [sheet]
}

function forget() {
  wave?.pause()
  wave?.getMediaElement().destroy()
  wave?.destroy()
  wave = null
  verdict = null
  $('waveform').replaceChildren()
  $('play').textContent = 'Play'
}

async function toggle() {
  if (!wave) return
  await wave.getMediaElement().audioContext.resume()
  await wave.playPause()
}

// ---- choosing, dropping and making a recording

function choose(chosen) {
  file = chosen
  $('analyse').disabled = false
  analyse()
}

async function record() {
  if (recorder) {
    recorder.stop()
    return
  }
  let stream
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true })
  } catch {
    showProblem(new Problem('No microphone', 'The browser gave no access to a microphone. Allow it, or choose a file.'))
    return
  }
  const parts = []
  recorder = new MediaRecorder(stream)
  recorder.addEventListener('dataavailable', (event) => parts.push(event.data))
  recorder.addEventListener('stop', () => {
    for (const track of stream.getTracks()) track.stop()
    const type = recorder.mimeType
    recorder = null
    $('record').textContent = 'Record with the microphone'
    $('record').setAttribute('aria-pressed', 'false')
    choose(new File(parts, `recording.${type.includes('mp4') ? 'm4a' : type.includes('ogg') ? 'ogg' : 'webm'}`, { type }))
  })
  recorder.start()
  $('record').textContent = 'Stop and analyse'
  $('record').setAttribute('aria-pressed', 'true')
}

function save() {
  const address = URL.createObjectURL(new Blob([JSON.stringify(verdict, null, 2)], { type: 'application/json' }))
  element('a', { href: address, download: `${verdict.filename ?? 'recording'}.json` }).click()
  setTimeout(() => URL.revokeObjectURL(address), 1000)
}

async function introduce() {
  try {
    const info = await ask('info')
    limits = info.limits
    sentences = { ...info.reasons, ...info.warnings }
    const formats = info.supported_formats.map((name) => name.toUpperCase()).join(', ')
    $('file').accept = ['audio/*', 'video/*', ...info.supported_formats.map((name) => `.${name}`)].join()
    const minutes = limits.max_duration_seconds / 60
    $('accepted').textContent = `${formats}, up to ${limits.max_upload_mib} MiB and ${+minutes.toFixed(1)} minutes`
    const { version } = await ask('./')
    $('version').textContent = `Version ${version}`
  } catch {
    $('accepted').textContent ||= 'The service is not ready yet.'
  }
}

$('form').addEventListener('submit', (event) => {
  event.preventDefault()
  analyse()
})
$('file').addEventListener('change', () => {
  if ($('file').files.length) choose($('file').files[0])
  $('file').value = '' // so that the same file can be chosen again
})
$('cancel').addEventListener('click', () => {
  request?.abort()
  $('status').textContent = 'Cancelled.'
})
$('record').addEventListener('click', record)
$('save').addEventListener('click', save)
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
addEventListener('drop', (event) => {
  event.preventDefault()
  $('drop').classList.remove('over')
  const dropped = event.dataTransfer.files
  if (dropped.length === 1) choose(dropped[0])
  else if (dropped.length) showProblem(new Problem('One at a time', 'Drop one recording at a time.'))
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

$('record').hidden = !(navigator.mediaDevices && window.MediaRecorder)
const introduced = introduce()
