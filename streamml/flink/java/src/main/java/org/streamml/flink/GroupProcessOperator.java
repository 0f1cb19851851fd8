package org.streamml.flink;

import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.functions.python.DataStreamPythonFunctionInfo;
import org.apache.flink.streaming.api.operators.python.process.AbstractExternalDataStreamPythonFunctionOperator;
import org.apache.flink.streaming.api.operators.python.process.ExternalPythonKeyedProcessOperator;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.types.Row;

/**
 * PyFlink's keyed process operator, but a watermark is in force for the very next batch.
 *
 * <p>PyFlink holds a watermark back until the current bundle ends, and batches that come after it still see the one before. Whether an event is late
 * would then depend on where a bundle was cut. Here a watermark ends the bundle first. And timers are Flink's from the end of the bundle on.
 */
public class GroupProcessOperator<OUT> extends ExternalPythonKeyedProcessOperator<OUT> {
    private static final long serialVersionUID = 1L;

    public GroupProcessOperator(
            Configuration config,
            DataStreamPythonFunctionInfo function,
            TypeInformation<Row> inputType,
            TypeInformation<OUT> outputType) {
        super(config, function, (org.apache.flink.api.java.typeutils.RowTypeInfo) inputType, outputType);
    }

    /** PyFlink 2.3 takes over the timers that Python set only when a watermark comes; a checkpoint before that would lack them. */
    @Override
    protected void invokeFinishBundle() throws Exception {
        super.invokeFinishBundle();
        drainUnregisteredTimers();
    }

    @Override
    public void processWatermark(Watermark mark) throws Exception {
        invokeFinishBundle();
        super.processWatermark(mark);
    }

    @Override
    public <T> AbstractExternalDataStreamPythonFunctionOperator<T> copy(
            DataStreamPythonFunctionInfo function, TypeInformation<T> outputType) {
        GroupProcessOperator<T> copied =
                new GroupProcessOperator<>(config, function, (TypeInformation<Row>) (TypeInformation<?>) getInputTypeInfo(), outputType);
        copied.addSideOutputTags(getSideOutputTags());
        return copied;
    }
}
