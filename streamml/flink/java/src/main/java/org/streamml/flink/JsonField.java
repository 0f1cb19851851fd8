package org.streamml.flink;

import java.io.Serializable;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/**
 * Reads one top-level field of a JSON object as an encoded key, without building anything of the rest.
 *
 * <p>Returns null where there is no usable key: no object, no such field, or a value that is neither text nor a whole number. Such a record is
 * rejected by Python, which decodes it in full and says why; so this class need not judge JSON, it only must give equal keys the same bytes. As in
 * Python, the last field of the name wins, and 5, 5.0 and 5e0 are the same key.
 */
final class JsonField implements Serializable {
    private final byte[] name;

    JsonField(String name) {
        this.name = name.getBytes(StandardCharsets.UTF_8);
    }

    /** Returns the value as an encoded key, null when it can be none. */
    byte[] read(byte[] json) {
        long place = find(json);
        return place < 0 ? null : encode(json, (int) (place >> 32), (int) place);
    }

    /** Returns where the value is, start and stop in the upper and lower half, -1 if there is none. */
    long find(byte[] json) {
        int at = skipSpace(json, 0);
        if (at >= json.length || json[at] != '{') {
            return -1;
        }
        long found = -1;
        at++;
        while (true) {
            at = skipSpace(json, at);
            if (at >= json.length || json[at] != '"') {
                return found;
            }
            int end = endOfText(json, at);
            if (end < 0) {
                return found;
            }
            boolean wanted = isName(json, at + 1, end);
            at = skipSpace(json, end + 1);
            if (at >= json.length || json[at] != ':') {
                return found;
            }
            at = skipSpace(json, at + 1);
            int stop = endOfValue(json, at);
            if (stop < 0) {
                return found;
            }
            if (wanted) {
                found = (long) at << 32 | stop;
            }
            at = skipSpace(json, stop);
            if (at >= json.length || json[at] != ',') {
                return found;
            }
            at++;
        }
    }

    private boolean isName(byte[] json, int start, int end) {
        if (indexOfEscape(json, start, end) >= 0) {
            String text = unescape(json, start, end);
            return text != null && Arrays.equals(text.getBytes(StandardCharsets.UTF_8), name);
        }
        return Arrays.equals(json, start, end, name, 0, name.length);
    }

    private static byte[] encode(byte[] json, int start, int stop) {
        if (start >= stop) {
            return null;
        }
        if (json[start] == '"') {
            String text = indexOfEscape(json, start + 1, stop - 1) < 0
                    ? new String(json, start + 1, stop - start - 2, StandardCharsets.UTF_8)
                    : unescape(json, start + 1, stop - 1);
            return text == null ? null : KeyEncoding.text(text);
        }
        if (json[start] != '-' && (json[start] < '0' || json[start] > '9')) {
            return null;
        }
        String number = new String(json, start, stop - start, StandardCharsets.US_ASCII);
        try {
            return KeyEncoding.integer(stop - start < 19 ? Long.parseLong(number) : new BigDecimal(number).longValueExact());
        } catch (NumberFormatException | ArithmeticException first) {
            try {
                return KeyEncoding.integer(new BigDecimal(number).longValueExact());
            } catch (NumberFormatException | ArithmeticException second) {
                return null;
            }
        }
    }

    private static int skipSpace(byte[] json, int at) {
        while (at < json.length && (json[at] == ' ' || json[at] == '\n' || json[at] == '\r' || json[at] == '\t')) {
            at++;
        }
        return at;
    }

    /** Returns where the closing quote of the text that opens at {@code at} is, -1 if nowhere. */
    private static int endOfText(byte[] json, int at) {
        for (int i = at + 1; i < json.length; i++) {
            if (json[i] == '\\') {
                i++;
            } else if (json[i] == '"') {
                return i;
            }
        }
        return -1;
    }

    private static int endOfValue(byte[] json, int at) {
        int depth = 0;
        for (int i = at; i < json.length; i++) {
            switch (json[i]) {
                case '"':
                    i = endOfText(json, i);
                    if (i < 0) {
                        return -1;
                    }
                    if (depth == 0) {
                        return i + 1;
                    }
                    break;
                case '{':
                case '[':
                    depth++;
                    break;
                case '}':
                case ']':
                    if (depth == 0) {
                        return i;
                    }
                    if (--depth == 0) {
                        return i + 1;
                    }
                    break;
                case ',':
                case ' ':
                case '\n':
                case '\r':
                case '\t':
                    if (depth == 0) {
                        return i;
                    }
                    break;
                default:
            }
        }
        return -1;
    }

    private static int indexOfEscape(byte[] json, int start, int end) {
        for (int i = start; i < end; i++) {
            if (json[i] == '\\') {
                return i;
            }
        }
        return -1;
    }

    private static String unescape(byte[] json, int start, int end) {
        String raw = new String(json, start, end - start, StandardCharsets.UTF_8);
        StringBuilder text = new StringBuilder(raw.length());
        for (int i = 0; i < raw.length(); i++) {
            char c = raw.charAt(i);
            if (c != '\\') {
                text.append(c);
                continue;
            }
            if (++i == raw.length()) {
                return null;
            }
            int plain = "\"\\/bfnrt".indexOf(raw.charAt(i));
            if (plain >= 0) {
                text.append("\"\\/\b\f\n\r\t".charAt(plain));
            } else if (raw.charAt(i) == 'u' && i + 4 < raw.length()) {
                try {
                    text.append((char) Integer.parseInt(raw.substring(i + 1, i + 5), 16));
                } catch (NumberFormatException e) {
                    return null;
                }
                i += 4;
            } else {
                return null;
            }
        }
        return text.toString();
    }
}
