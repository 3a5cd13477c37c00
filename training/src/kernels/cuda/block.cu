// What a transformer block computes between its matrix products, and rows of one length, in float32. Compiled by NVRTC when it is first used.
// Sums are taken in a fixed order, without atomics: the same input gives the same bits.

#define FULL 0xffffffffu

__device__ __forceinline__ float warp_sum(float v) {
    for (int step = 16; step > 0; step >>= 1) v += __shfl_xor_sync(FULL, v, step);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
    for (int step = 16; step > 0; step >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL, v, step));
    return v;
}

// The row of this warp: blocks are 32 x warps.
#define WARP_ROW ((long long)blockIdx.x * blockDim.y + threadIdx.y)

// y = (x - mean) / deviation * w + b for each row; stats holds mean and 1 / deviation.
extern "C" __global__ void layer_norm(const float *x, const float *w, const float *b, float *y, float *stats, int rows, int dim, float eps) {
    long long row = WARP_ROW;
    if (row >= rows) return;
    const float *from = x + row * dim;
    float sum = 0.0f;
    for (int c = threadIdx.x; c < dim; c += 32) sum += from[c];
    float mean = warp_sum(sum) / dim;
    float squares = 0.0f;
    for (int c = threadIdx.x; c < dim; c += 32) { float d = from[c] - mean; squares += d * d; }
    float scale = 1.0f / sqrtf(warp_sum(squares) / dim + eps);
    for (int c = threadIdx.x; c < dim; c += 32) y[row * dim + c] = (from[c] - mean) * scale * w[c] + b[c];
    if (threadIdx.x == 0) { stats[2 * row] = mean; stats[2 * row + 1] = scale; }
}

// dx = base + the gradient of a layer norm by its input.
extern "C" __global__ void layer_norm_input(const float *x, const float *w, const float *stats, const float *dy, const float *base, float *dx, int rows, int dim) {
    long long row = WARP_ROW;
    if (row >= rows) return;
    float mean = stats[2 * row], scale = stats[2 * row + 1];
    float sum = 0.0f, along = 0.0f;
    for (int c = threadIdx.x; c < dim; c += 32) {
        float g = dy[row * dim + c] * w[c];
        sum += g;
        along += g * (x[row * dim + c] - mean) * scale;
    }
    sum = warp_sum(sum) / dim;
    along = warp_sum(along) / dim;
    for (int c = threadIdx.x; c < dim; c += 32) {
        float normed = (x[row * dim + c] - mean) * scale;
        dx[row * dim + c] = base[row * dim + c] + scale * (dy[row * dim + c] * w[c] - sum - normed * along);
    }
}

// Sums over the rows of one chunk, 32 columns a block of 32 x 8 threads.
__device__ __forceinline__ void store_column(float sum, float *out, int cols, int col) {
    __shared__ float parts[8][33];
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && col < cols) {
        for (int i = 1; i < 8; i++) sum += parts[i][threadIdx.x];
        out[(long long)blockIdx.y * cols + col] = sum;
    }
    __syncthreads();
}

extern "C" __global__ void column_sums(const float *x, float *out, int rows, int cols, int chunk) {
    int col = blockIdx.x * 32 + threadIdx.x;
    int end = min(rows, (int)(blockIdx.y + 1) * chunk);
    float sum = 0.0f;
    if (col < cols) for (int row = blockIdx.y * chunk + threadIdx.y; row < end; row += 8) sum += x[(long long)row * cols + col];
    store_column(sum, out, cols, col);
}

// Gradients of a layer norm by its weight and its bias, sums over the rows of one chunk: out is [2, chunks, dim].
extern "C" __global__ void layer_norm_weights(const float *x, const float *stats, const float *dy, float *out, int rows, int dim, int chunk) {
    int col = blockIdx.x * 32 + threadIdx.x;
    int end = min(rows, (int)(blockIdx.y + 1) * chunk);
    float dw = 0.0f, db = 0.0f;
    if (col < dim) for (int row = blockIdx.y * chunk + threadIdx.y; row < end; row += 8) {
        float g = dy[(long long)row * dim + col];
        dw += g * (x[(long long)row * dim + col] - stats[2 * (long long)row]) * stats[2 * (long long)row + 1];
        db += g;
    }
    store_column(dw, out, dim, col);
    store_column(db, out + (long long)gridDim.y * dim, dim, col);
}

#define ELEMENT ((long long)blockIdx.x * blockDim.x + threadIdx.x)

// out = x + factor of the row * (y + bias); factors is null for 1.
extern "C" __global__ void residual(const float *x, const float *y, const float *bias, const float *factors, float *out, long long count, int cols) {
    long long i = ELEMENT;
    if (i >= count) return;
    float branch = y[i] + bias[i % cols];
    out[i] = x[i] + (factors ? factors[i / cols] * branch : branch);
}

// out = factor of the row * x.
extern "C" __global__ void scale_rows(const float *x, const float *factors, float *out, long long count, int cols) {
    long long i = ELEMENT;
    if (i < count) out[i] = factors[i / cols] * x[i];
}

// out = gelu(y + bias), exact form.
extern "C" __global__ void bias_gelu(const float *y, const float *bias, float *out, long long count, int cols) {
    long long i = ELEMENT;
    if (i >= count) return;
    float x = y[i] + bias[i % cols];
    out[i] = 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

// The gradient of that by y.
extern "C" __global__ void bias_gelu_input(const float *y, const float *bias, const float *dout, float *dy, long long count, int cols) {
    long long i = ELEMENT;
    if (i >= count) return;
    float x = y[i] + bias[i % cols];
    float cdf = 0.5f * (1.0f + erff(x * 0.70710678118654752f));
    dy[i] = dout[i] * (cdf + x * 0.39894228040143268f * expf(-0.5f * x * x));
}

// out = silu(gate + bias) * (value + bias) for each row [gate, value], of cols columns each.
extern "C" __global__ void bias_swiglu(const float *y, const float *bias, float *out, long long count, int cols) {
    long long i = ELEMENT;
    if (i >= count) return;
    int col = i % cols;
    const float *from = y + i / cols * 2 * cols;
    float gate = from[col] + bias[col], value = from[cols + col] + bias[cols + col];
    out[i] = gate / (1.0f + expf(-gate)) * value;
}

// The gradient of that by y.
extern "C" __global__ void bias_swiglu_input(const float *y, const float *bias, const float *dout, float *dy, long long count, int cols) {
    long long i = ELEMENT;
    if (i >= count) return;
    int col = i % cols;
    long long first = i / cols * 2 * cols;
    float gate = y[first + col] + bias[col], value = y[first + cols + col] + bias[cols + col];
    float share = 1.0f / (1.0f + expf(-gate)), silu = gate * share;
    dy[first + col] = dout[i] * value * (share + silu * (1.0f - share));
    dy[first + cols + col] = dout[i] * silu;
}

// The channel that is turned together with this one, as a distance from it.
__device__ __forceinline__ int partner(int channel, int width) { return channel < width / 2 ? width / 2 : -(width / 2); }

// A channel after its head's turn by the angles of its patch, or back: way is 1 or -1. The angles of a patch are those of its row, then those of its
// column; angles holds cosines of all rows and columns, then sines: [2, rows + columns, width / 4].
__device__ __forceinline__ float turned(float own, float other, const float *angles, int patch, int patches, int columns, int channel, int width, float way) {
    int half = width / 2, quarter = width / 4, of = channel % half, rows = patches / columns;
    int line = of < quarter ? patch / columns : rows + patch % columns;
    int at = line * quarter + of % quarter;
    float sine = way * angles[(rows + columns) * quarter + at];
    return own * angles[at] + (channel < half ? -sine : sine) * other;
}

// Rows [n * tokens, parts * heads * width] plus a bias (may be null) to [parts, n, heads, tokens, width]. The first two parts, queries and keys,
// are turned by the angles of their patches, which come after the first tokens of a sequence; without angles nothing is.
extern "C" __global__ void split_heads(const float *rows, const float *bias, const float *angles, float *out, int n, int tokens, int parts, int heads, int width, int prefix, int columns) {
    long long i = ELEMENT;
    int dim = heads * width, cols = parts * dim;
    if (i >= (long long)n * tokens * cols) return;
    int col = i % cols, channel = col % width;
    long long row = i / cols, sequence = row / tokens, token = row % tokens;
    int part = col / dim, head = col % dim / width;
    float value = rows[i] + (bias ? bias[col] : 0.0f);
    if (angles && part < 2 && token >= prefix) {
        int to = partner(channel, width);
        float other = rows[i + to] + (bias ? bias[col + to] : 0.0f);
        value = turned(value, other, angles, token - prefix, tokens - prefix, columns, channel, width, 1.0f);
    }
    out[(((part * (long long)n + sequence) * heads + head) * tokens + token) * width + channel] = value;
}

// The way back for one part: [n, heads, tokens, width] to columns first.. of rows with cols columns, turned back where there are angles.
extern "C" __global__ void merge_heads(const float *from, const float *angles, float *rows, int n, int tokens, int heads, int width, int cols, int first, int prefix, int columns) {
    long long i = ELEMENT;
    int dim = heads * width;
    if (i >= (long long)n * tokens * dim) return;
    int col = i % dim, channel = col % width;
    long long row = i / dim, sequence = row / tokens, token = row % tokens;
    long long at = ((sequence * heads + col / width) * tokens + token) * width + channel;
    float value = from[at];
    if (angles && token >= prefix)
        value = turned(value, from[at + partner(channel, width)], angles, token - prefix, tokens - prefix, columns, channel, width, -1.0f);
    rows[row * cols + first + col] = value;
}

// out = softmax(scale * scores) for each row.
extern "C" __global__ void softmax(const float *scores, float *out, int rows, int cols, float scale) {
    long long row = WARP_ROW;
    if (row >= rows) return;
    const float *from = scores + row * cols;
    float most = -3.402823466e+38f;
    for (int c = threadIdx.x; c < cols; c += 32) most = fmaxf(most, from[c]);
    most = warp_max(most);
    float sum = 0.0f;
    for (int c = threadIdx.x; c < cols; c += 32) sum += expf(scale * (from[c] - most));
    float share = 1.0f / warp_sum(sum);
    for (int c = threadIdx.x; c < cols; c += 32) out[row * cols + c] = expf(scale * (from[c] - most)) * share;
}

// The gradient of that by the scores.
extern "C" __global__ void softmax_input(const float *weights, const float *dout, float *dscores, int rows, int cols, float scale) {
    long long row = WARP_ROW;
    if (row >= rows) return;
    const float *p = weights + row * cols, *g = dout + row * cols;
    float along = 0.0f;
    for (int c = threadIdx.x; c < cols; c += 32) along += p[c] * g[c];
    along = warp_sum(along);
    for (int c = threadIdx.x; c < cols; c += 32) dscores[row * cols + c] = scale * p[c] * (g[c] - along);
}

// out = factor of the row * x / |x| for each row; a length counts as at least floor.
extern "C" __global__ void unit_rows(const float *x, const float *factors, float *out, int rows, int cols, float floor) {
    long long row = WARP_ROW;
    if (row >= rows) return;
    float squares = 0.0f;
    for (int c = threadIdx.x; c < cols; c += 32) squares += x[row * cols + c] * x[row * cols + c];
    float factor = factors[row] / fmaxf(sqrtf(warp_sum(squares)), floor);
    for (int c = threadIdx.x; c < cols; c += 32) out[row * cols + c] = factor * x[row * cols + c];
}

// The gradients of that by x and by the factors.
extern "C" __global__ void unit_rows_input(const float *x, const float *factors, const float *dout, float *dx, float *dfactors, int rows, int cols, float floor) {
    long long row = WARP_ROW;
    if (row >= rows) return;
    const float *from = x + row * cols, *g = dout + row * cols;
    float squares = 0.0f, along = 0.0f;
    for (int c = threadIdx.x; c < cols; c += 32) { squares += from[c] * from[c]; along += from[c] * g[c]; }
    float length = sqrtf(warp_sum(squares)), norm = fmaxf(length, floor);
    along = warp_sum(along) / norm;
    float factor = factors[row] / norm, turn = length > floor ? along / norm : 0.0f;
    for (int c = threadIdx.x; c < cols; c += 32) dx[row * cols + c] = factor * (g[c] - turn * from[c]);
    if (threadIdx.x == 0) dfactors[row] = along;
}
