package org.streamml.flink;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import java.nio.charset.StandardCharsets;
import org.junit.jupiter.api.Test;

class JsonFieldTest {
    private static byte[] read(String json) {
        return new JsonField("k").read(json.getBytes(StandardCharsets.UTF_8));
    }

    private static void text(String wanted, String json) {
        assertArrayEquals(KeyEncoding.text(wanted), read(json), json);
    }

    private static void number(long wanted, String json) {
        assertArrayEquals(KeyEncoding.integer(wanted), read(json), json);
    }

    @Test
    void textIsFoundAmongOtherFields() {
        text("a", "{\"k\":\"a\"}");
        text("a", " { \"x\" : [1, {\"k\": \"no\"}, \"]}\"] , \"k\" : \"a\" , \"y\": null } ");
        text("", "{\"k\":\"\"}");
        text("a", "{\"x\":\"\\\"k\\\":\\\"no\\\"\",\"k\":\"a\"}");
    }

    @Test
    void theSameKeyInOtherWordsGivesTheSameBytes() {
        text("aé\n", "{\"k\":\"\\u0061é\\n\"}");
        text("😀", "{\"k\":\"\\ud83d\\ude00\"}");
        text("a", "{\"\\u006b\":\"a\"}");
        number(5, "{\"k\":5}");
        number(5, "{\"k\":5.0}");
        number(50, "{\"k\":5e1}");
        number(-7, "{\"k\": -7 }");
        number(Long.MAX_VALUE, "{\"k\":9223372036854775807}");
        number(0, "{\"k\":-0}");
    }

    @Test
    void theLastFieldOfTheNameWins() {
        text("b", "{\"k\":\"a\",\"k\":\"b\"}");
    }

    @Test
    void whatHasNoUsableKeyGivesNone() {
        for (String json : new String[] {
            "", "[]", "{}", "{", "{\"k\"", "{\"k\":", "{\"k\":null}", "{\"k\":true}", "{\"k\":1.5}", "{\"k\":[1]}", "{\"x\":\"k\"}",
            "{\"k\":\"a", "{\"k\":\"\\x\"}", "{\"k\":\"\\u12\"}", "no json", "{\"k\":99999999999999999999}", "{\"k\":-}"
        }) {
            assertNull(read(json), json);
        }
    }

    @Test
    void encodedKeysHaveTheWidthsOfMessagePack() {
        assertArrayEquals(new byte[] {127}, KeyEncoding.integer(127));
        assertArrayEquals(new byte[] {(byte) 0xcc, (byte) 0x80}, KeyEncoding.integer(128));
        assertArrayEquals(new byte[] {(byte) 0xcd, 1, 0}, KeyEncoding.integer(256));
        assertArrayEquals(new byte[] {(byte) 0xce, 0, 1, 0, 0}, KeyEncoding.integer(65536));
        assertArrayEquals(new byte[] {(byte) 0xcf, 0, 0, 0, 1, 0, 0, 0, 0}, KeyEncoding.integer(1L << 32));
        assertArrayEquals(new byte[] {(byte) 0xe0}, KeyEncoding.integer(-32));
        assertArrayEquals(new byte[] {(byte) 0xd0, (byte) 0xdf}, KeyEncoding.integer(-33));
        assertArrayEquals(new byte[] {(byte) 0xd1, (byte) 0xff, 0x7f}, KeyEncoding.integer(-129));
        assertArrayEquals(new byte[] {(byte) 0xd2, (byte) 0xff, (byte) 0xff, 0x7f, (byte) 0xff}, KeyEncoding.integer(-32769));
        assertArrayEquals(
                new byte[] {(byte) 0xd3, (byte) 0xff, (byte) 0xff, (byte) 0xff, (byte) 0xff, 0x7f, (byte) 0xff, (byte) 0xff, (byte) 0xff},
                KeyEncoding.integer(-(1L << 31) - 1));
        assertArrayEquals(new byte[] {(byte) 0xd9, 32}, java.util.Arrays.copyOf(KeyEncoding.text("x".repeat(32)), 2));
        assertArrayEquals(new byte[] {(byte) 0xda, 1, 0}, java.util.Arrays.copyOf(KeyEncoding.text("x".repeat(256)), 3));
    }
}
