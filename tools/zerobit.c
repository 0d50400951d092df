#include <stdio.h>
#include <zerobit/zerobit.h>

int main(void)
{
    puts("zerobit " ZB_VERSION);
    return 0;
}
