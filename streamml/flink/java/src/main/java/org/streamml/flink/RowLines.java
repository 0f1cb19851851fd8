package org.streamml.flink;

import java.io.IOException;
import java.io.OutputStream;
import org.apache.flink.api.common.serialization.Encoder;
import org.apache.flink.types.Row;

/** Writes the record of a row of (key, record) as a line of a file. */
public final class RowLines implements Encoder<Row> {
    private static final long serialVersionUID = 1L;

    @Override
    public void encode(Row element, OutputStream stream) throws IOException {
        stream.write((byte[]) element.getField(1));
        stream.write('\n');
    }
}
