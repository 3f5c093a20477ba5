// The microphone of this machine.

import { Problem } from './service.js'

const TICK_MS = 250

export function canRecord() {
  return Boolean(navigator.mediaDevices && window.MediaRecorder)
}

export async function openMicrophone() {
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: true })
  } catch {
    throw new Problem('No microphone', 'The browser gave no access to a microphone. Allow it, or choose a file.')
  }
}

export function turnOff(microphone) {
  for (const track of microphone.getTracks()) track.stop()
}

// Records from an open microphone until `stop` is called, which turns the microphone off. Returns {stop, file}; `file`
// is a promise. `tick` is called with the seconds so far, and `onSound` with each piece of sound, `sliceMs` long. Throws
// if the browser cannot record, and turns the microphone off.
export function recordFrom(microphone, { tick, onSound = () => {}, type, sliceMs }) {
  const parts = []
  let recorder
  try {
    recorder = new MediaRecorder(microphone, { mimeType: type })
    recorder.start(sliceMs)
  } catch (error) {
    turnOff(microphone)
    throw error
  }
  const started = performance.now()
  const timer = setInterval(() => tick((performance.now() - started) / 1000), TICK_MS)
  const file = new Promise((resolve) => {
    recorder.addEventListener('dataavailable', ({ data }) => {
      parts.push(data)
      onSound(data)
    })
    recorder.addEventListener('stop', () => {
      clearInterval(timer)
      turnOff(microphone)
      resolve(asFile(parts, recorder.mimeType))
    })
  })
  tick(0)
  return { file, stop: () => recorder.state === 'recording' && recorder.stop() }
}

function asFile(parts, type) {
  const ending = type.includes('mp4') ? 'm4a' : type.includes('ogg') ? 'ogg' : 'webm'
  return new File(parts, `recording.${ending}`, { type })
}
