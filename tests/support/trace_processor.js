// Perfetto's own trace processor (WebAssembly), as its user interface uses it, without a browser.
// node trace_processor.js ENGINE_FOLDER TRACE QUERY: the rows as JSON on stdout.
// Messages by hand. Source: perfetto's protos/perfetto/trace_processor/trace_processor.proto.
const fs = require("fs");
const path = require("path");

const [folder, trace, sql] = process.argv.slice(2);
const APPEND = 1, FINALIZE = 2, QUERY = 3;
const APPEND_DATA = 101, QUERY_ARGS = 103, APPEND_RESULT = 201, QUERY_RESULT = 203;

function varint(number) {
    const bytes = [];
    for (; number > 127; number = Math.floor(number / 128)) bytes.push((number & 127) | 128);
    return Buffer.from([...bytes, number]);
}
const field = (number, value) => Buffer.concat([varint(number * 8), varint(value)]);
function bytes(number, data) {
    return Buffer.concat([varint(number * 8 + 2), varint(data.length), data]);
}

function readVarint(data, at) {
    let value = 0n, shift = 0n;
    for (;; shift += 7n) {
        const byte = data[at++];
        value |= BigInt(byte & 127) << shift;
        if (byte < 128) return [BigInt.asIntN(64, value), at];
    }
}
// {number: [values]} of one message.
function parse(data) {
    const found = {};
    for (let at = 0; at < data.length;) {
        let key, value;
        [key, at] = readVarint(data, at);
        const number = Number(key >> 3n), kind = Number(key & 7n);
        if (kind === 0) [value, at] = readVarint(data, at);
        else {
            let size = 8n;
            if (kind === 2) [size, at] = readVarint(data, at);
            value = data.subarray(at, at + Number(size));
            at += Number(size);
        }
        (found[number] ??= []).push(value);
    }
    return found;
}
function packed(data) {
    const values = [];
    for (let at = 0, value; at < data.length;) {
        [value, at] = readVarint(data, at);
        values.push(Number(value));
    }
    return values;
}

function rows(results) {
    const names = results.flatMap((result) => result[1] ?? []).map(String);
    const cells = [];
    for (const batch of results.flatMap((result) => result[3] ?? []).map(parse)) {
        const numbers = (batch[2] ?? []).flatMap(packed);
        const floats = Buffer.concat(batch[3] ?? []);
        const texts = Buffer.concat(batch[5] ?? []).toString().split("\0");
        let float = 0;
        for (const kind of (batch[1] ?? []).flatMap(packed)) {
            if (kind === 2) cells.push(numbers.shift());
            else if (kind === 3) cells.push(floats.readDoubleLE(8 * float++));
            else cells.push(kind === 4 ? texts.shift() : null);
        }
    }
    const out = [];
    while (cells.length) out.push(cells.splice(0, names.length));
    return out;
}

const results = [];
function answer(data) {
    for (const message of parse(Buffer.from(data))[1].map(parse)) {
        const error = (message[5] ?? parse((message[APPEND_RESULT] ?? [Buffer.alloc(0)])[0])[2]);
        if (error) throw new Error(String(error[0]));
        for (const result of (message[QUERY_RESULT] ?? []).map(parse)) {
            if (result[2] && String(result[2][0])) throw new Error(String(result[2][0]));
            results.push(result);
            const last = (result[3] ?? []).map(parse).some((batch) => batch[6]?.[0]);
            if (last) process.stdout.write(JSON.stringify(rows(results)), () => process.exit(0));
        }
    }
}

// The engine is made for a browser's worker: what it looks for there, and nothing of node's.
const port = { postMessage: answer };
const self = { location: { href: `file://${folder}/` } };
class FileRequest {
    open(method, url) { this.url = url; }
    send() {
        this.status = 200;
        const data = fs.readFileSync(path.join(folder, path.basename(this.url)));
        this.response = new Uint8Array(data).buffer;
    }
}
const engine = fs.readFileSync(path.join(folder, "engine_bundle.js"), "utf8");
const quiet = { log() {}, warn() {}, error: console.error };
new Function("self", "console", "process", "WorkerGlobalScope", "importScripts",
    "location", "XMLHttpRequest", engine)(
    self, quiet, undefined, function () {}, () => {}, self.location, FileRequest);
self.onmessage({ data: port });

let sequence = 0;
function request(kind, ...more) {
    const message = Buffer.concat([field(1, ++sequence), field(2, kind), ...more]);
    const stream = bytes(1, message);
    port.onmessage({ data: new Uint8Array(stream) });
}
function ask() {
    try {
        const data = fs.readFileSync(trace);
        for (let at = 0; at < data.length; at += 1 << 20) {
            request(APPEND, bytes(APPEND_DATA, data.subarray(at, at + (1 << 20))));
        }
        request(FINALIZE);
        request(QUERY, bytes(QUERY_ARGS, bytes(1, Buffer.from(sql))));
    } catch (error) {
        console.error(error);
        process.exit(1);
    }
}
// The module was made just now; what waits for it comes before this.
setImmediate(ask);
