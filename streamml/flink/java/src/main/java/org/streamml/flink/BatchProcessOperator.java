package org.streamml.flink;

import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.functions.python.DataStreamPythonFunctionInfo;
import org.apache.flink.streaming.api.operators.python.process.AbstractExternalDataStreamPythonFunctionOperator;
import org.apache.flink.streaming.api.operators.python.process.ExternalPythonProcessOperator;
import org.apache.flink.streaming.api.watermark.Watermark;

/** The same as {@link GroupProcessOperator} for a stage without a key: a record never overtakes a watermark. */
public class BatchProcessOperator<IN, OUT> extends ExternalPythonProcessOperator<IN, OUT> {
    private static final long serialVersionUID = 1L;

    public BatchProcessOperator(
            Configuration config,
            DataStreamPythonFunctionInfo function,
            TypeInformation<IN> inputType,
            TypeInformation<OUT> outputType) {
        super(config, function, inputType, outputType);
    }

    @Override
    public void processWatermark(Watermark mark) throws Exception {
        invokeFinishBundle();
        super.processWatermark(mark);
    }

    @Override
    public <T> AbstractExternalDataStreamPythonFunctionOperator<T> copy(
            DataStreamPythonFunctionInfo function, TypeInformation<T> outputType) {
        BatchProcessOperator<IN, T> copied = new BatchProcessOperator<>(config, function, getInputTypeInfo(), outputType);
        copied.addSideOutputTags(getSideOutputTags());
        return copied;
    }
}
