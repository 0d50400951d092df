/* Prints the orders that Open MPI is set to, or why they are not known; check_read_native knows which. */
#include <stdio.h>
#include <zerobit/memory.h>
#include <zerobit/mpi.h>

int main(void)
{
    zb_orders orders;
    if (zb_mpi_read_native(&orders) != ZB_OK) {
        printf("%s\n", zb_error_message());
        return zb_mpi_end(1);
    }
    char *text = zb_orders_text(&orders);
    printf("%s\n", text != NULL ? text : "no memory");
    zb_free(text);
    zb_orders_destroy(&orders);
    return zb_mpi_end(0);
}
